"""DataCounters: totals by hand, and over a training that stops and goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_fixtures import Halves, encode, photo, write_tar
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from PIL import Image
from quiet_trainer import QUIET, quiet_trainer
from torch import Tensor

from datamodules import DecoderOptions, stream_datamodule
from datamodules.stream_datamodule import DataCounters, count_masks
from datamodules.webdataset_datamodule import WebDatasetDataModule

pytestmark = QUIET


class Memory(Logger):
    """Keeps what it is told of the data."""

    name = version = None

    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, Any]]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        found = {name.removeprefix("data/"): value for name, value in metrics.items() if name.startswith("data/")}
        self.rows += [(step, found)] if found else []

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


class Tiny(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recount(Callback):
    """The same by hand, from the batches themselves."""

    def __init__(self) -> None:
        self.samples = self.bad = self.empty = self.full = self.substituted = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.samples += len(batch["position"])
        self.bad += len(batch.get("notes", {}).get("bad", []))
        self.substituted += len(batch.get("notes", {}).get("substituted", []))
        self.empty += sum(not mask.any() for mask in batch["mask"])
        self.full += sum(bool(mask.all()) for mask in batch["mask"])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """20 photos: one is none, one in five has a white mask, one in five a black one."""
    members = []
    for n in range(20):
        members.append((f"k{n:02d}.png", b"x" if n == 5 else encode(photo(n))))
        if n % 5 in (1, 2):
            members.append((f"k{n:02d}.mask.png", encode(Image.new("L", (48, 40), 255 * (n % 5 - 1)))))
    return str(write_tar(tmp_path_factory.mktemp("data") / "0.tar", members))


def fit(
    shards: str, steps: int, folder: Path, checkpoint: Path | None = None, **options: Any
) -> tuple[Memory, Recount]:
    """Train, and save at the end."""
    data = WebDatasetDataModule(
        shards, batch_size=3, image_size=16, mask_generator=Halves(), decoder=DecoderOptions(flip=0.0)
    )
    logger, recount = Memory(), Recount()
    settings = {"log_every_n_steps": 2, "logger": logger, "callbacks": [DataCounters(), recount], **options}
    trainer = quiet_trainer(steps, default_root_dir=folder, **settings)
    trainer.fit(Tiny(), data, ckpt_path=checkpoint, weights_only=None if checkpoint is None else True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return logger, recount


def test_masks_by_hand() -> None:
    masks = torch.zeros(4, 1, 2, 3, dtype=torch.bool)
    masks[1], masks[2, 0, 0, 0] = True, True
    assert count_masks(masks).tolist() == [2, 1]


def test_totals_of_a_training_and_after_a_resume(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(stream_datamodule, "rank_zero_info", told.append)
    whole, recount = fit(shards, 6, tmp_path, accumulate_grad_batches=2)
    assert [step for step, _ in whole.rows] == [2, 4, 6]
    last = whole.rows[-1][1]
    assert last["samples"] == recount.samples == 36
    assert last["bad"] == recount.bad > 0
    assert last["substituted"] == recount.substituted > 0
    assert last["empty_masks"] == recount.empty > 0
    assert last["full_masks"] == recount.full > 0
    assert {last[name] for name in ("animated", "upscaled", "other_notes")} == {0}
    said = [f"{recount.bad} bad", f"{recount.substituted} substituted", f"{recount.empty} empty masks"]
    assert told == [f"\ndata: of 36 samples: {', '.join(said)}, {recount.full} full masks"]
    fit(shards, 3, tmp_path, accumulate_grad_batches=2)
    rest, _ = fit(shards, 6, tmp_path, tmp_path / "3.ckpt", accumulate_grad_batches=2)
    assert rest.rows == whole.rows[1:]


def equal_ranks(world: int) -> Any:
    """A trainer whose other ranks have counted the same."""

    def reduce(tensor: Tensor, reduce_op: str) -> Tensor:
        return getattr(torch.stack([tensor] * world), reduce_op)(0)

    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu"), reduce=reduce))


def counted(batch: dict[str, Any]) -> dict[str, int]:
    counters = DataCounters()
    counters._count(batch)
    return counters.totals(equal_ranks(1))


def test_notes_of_all_kinds() -> None:
    notes = {
        "bad": ["a", "b"],
        "substituted": ["a"],
        "animated": ["d"],
        "upscaled": ["e"],
        "bad_profile": ["g", "h", "i"],
        "new": ["f"],
    }
    found = counted({"__key__": ["k"] * 3, "notes": notes})
    assert found == {
        "samples": 3,
        "bad": 2,
        "substituted": 1,
        "animated": 1,
        "upscaled": 1,
        "bad_profiles": 3,
        "other_notes": 1,
        "empty_masks": 0,
        "full_masks": 0,
    }


def test_ranks_are_summed_and_a_checkpoint_is_not() -> None:
    """Totals of a checkpoint are of all its ranks, and count once on any number of them."""
    counters = DataCounters()
    counters.on_load_checkpoint(None, None, {"data_counters": {"samples": 10, "full_masks": 4}})  # type: ignore[arg-type]
    counters._count({"__key__": ["k"] * 3, "mask": torch.ones(3, 1, 2, 2, dtype=torch.bool)})
    found = counters.totals(equal_ranks(2))
    assert (found["samples"], found["full_masks"], found["empty_masks"]) == (16, 10, 0)


def test_a_checkpoint_without_totals() -> None:
    counters = DataCounters()
    counters.on_load_checkpoint(None, None, {})  # type: ignore[arg-type]
    assert set(counters._before.values()) == {0}
