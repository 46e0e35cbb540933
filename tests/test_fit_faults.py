"""A training with bad samples and a dead worker: which batches it gets, and which files name the samples."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import Halves, encode, in_parts, json_lines, photo, photo_shards, write_tar
from lightning import LightningModule
from quiet_trainer import QUIET, quiet_trainer
from torch import Tensor

from datamodules.shards.shard_set import RawSample
from datamodules.webdataset_datamodule import WebDatasetDataModule

pytestmark = QUIET

KEY = "p004"


class Recorder(LightningModule):
    """Notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[tuple[Any, ...]] = []

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        sums = [batch[name].long().sum().item() for name in ("image", "mask")]
        self.seen.append((batch["position"].tolist(), batch["__key__"], *sums))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        assert "notes" not in batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def die() -> None:
    faulthandler.disable()  # pytest's, which prints
    os.kill(os.getpid(), signal.SIGSEGV)


def bad() -> None:
    raise ValueError("bad")


def data_module(shards: str, act: Callable[[], None], val: str = "", **options: Any) -> WebDatasetDataModule:
    """Whose training decoder does something else when it meets KEY."""
    settings: dict[str, Any] = {"batch_size": 3, "image_size": 16, "mask_generator": Halves(), "seed": 4}
    data = WebDatasetDataModule(shards, val or shards, **settings, **in_parts(**options))
    decoder = data.train_decoder

    def decode(raw: RawSample) -> dict[str, Any]:
        if raw.key == KEY:
            act()
        return decoder(raw)

    decode.__dict__ |= vars(decoder)  # what the data module asks of it
    data.train_decoder = decode  # type: ignore[assignment]
    return data


def fit(
    data: WebDatasetDataModule, steps: int, folder: Path, checkpoint: Path | None = None, validate: int = 0
) -> list[tuple[Any, ...]]:
    """Train, with validations of so many batches, save at the end."""
    recorder = Recorder()
    trainer = quiet_trainer(steps, default_root_dir=folder, limit_val_batches=validate, val_check_interval=2)
    trainer.fit(recorder, data, ckpt_path=checkpoint, weights_only=None if checkpoint is None else True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return recorder.seen


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(photo_shards(tmp_path_factory.mktemp("data"), 13))


# torch raises a worker's death from a signal handler, on whatever line the process is at: in the `__del__` of another
# loader's iterator Python can only print it, and torch raises it again when it waits for the next batch
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function _MultiProcessingDataLoaderIter.__del__")
def test_the_next_start_leaves_out_a_sample_that_killed_a_worker(
    shards: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever the death shows, the error names the sample; the second start trains as if it had been bad content."""
    whole = fit(data_module(shards, bad), 6, tmp_path / "whole")
    assert json_lines(tmp_path / "whole" / "quarantine.jsonl")[0]["key"] == KEY
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="DataLoader worker") as raised:
        fit(data_module(shards, die, num_workers=2), 6, folder, validate=1)
    assert f"sample {KEY!r} for position" in raised.value.__notes__[0]
    assert [(row["key"], row["cause"]) for row in json_lines(folder / "crashes.jsonl")] == [(KEY, "Segmentation fault")]
    assert fit(data_module(shards, die, num_workers=1), 6, folder) == whole
    assert {row["key"] for row in json_lines(folder / "quarantine.jsonl")} == {KEY}


def test_too_many_bad_samples_end_a_fit(shards: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [(f"k{n}.png", b"x" if n % 2 else encode(photo(n))) for n in range(8)])
    data = data_module(str(tmp_path / "0.tar"), bad, shards, max_bad_share=0.002)
    with pytest.raises(
        ValueError, match=r"data\.loading\.max_bad_share: expected at most 0\.20% .*/run/quarantine\.jsonl names"
    ):
        fit(data, 9, tmp_path / "run")


def test_a_bad_sample_ends_an_evaluation(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("k0.png", encode(photo(1))), ("k1.png", b"x")])
    data = data_module(str(tmp_path / "0.tar"), bad)
    with pytest.raises(ValueError, match=r"0\.tar: sample 'k1': cannot identify"):
        quiet_trainer(1, default_root_dir=tmp_path).validate(Recorder(), data, verbose=False)
    assert not (tmp_path / "quarantine.jsonl").exists()
