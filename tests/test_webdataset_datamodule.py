"""WebDatasetDataModule: batches with masks, and training that goes on exactly where it stopped."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import Halves, encode, photo, photo_shards, write_tar
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from PIL import Image
from torch import Tensor

from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.masks import MaskGenerator

# Lightning 2.6.6 asks torch for a class that newer torch is about to drop; nothing here calls it.
pytestmark = pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated")

COUNT = 13


class Recorder(LightningModule):
    """Trains one weight and notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trained: list[tuple[Any, ...]] = []
        self.validated: list[tuple[Any, ...]] = []

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        self.trained += rows(batch)
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self.validated += rows(batch)

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self.validated += rows(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def rows(batch: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Position, key, caption, and sums over image and mask of each sample."""
    columns = [batch["position"].tolist(), batch["__key__"], batch["caption"]]
    sums = [batch[name].long().sum(dim=(1, 2, 3)).tolist() for name in ("image", "mask")]
    return list(zip(*columns, *sums, strict=True))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(photo_shards(tmp_path_factory.mktemp("data"), COUNT))


def module(shards: str | list[str], **options: Any) -> WebDatasetDataModule:
    settings = {"batch_size": 3, "image_size": 16, "mask_generator": Halves(), "seed": 4, "window": 2, **options}
    return WebDatasetDataModule(shards, shards, **settings)


def trainer(steps: int, folder: Path, **options: Any) -> Trainer:
    settings = {"max_steps": steps, "max_epochs": -1, "accelerator": "cpu", "logger": False, **options}
    quiet = dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    return Trainer(**settings, **quiet, use_distributed_sampler=False, default_root_dir=folder)


def fit(
    data: WebDatasetDataModule, steps: int, folder: Path, checkpoint: Path | None = None, **options: Any
) -> list[tuple[Any, ...]]:
    """Train up to `steps` optimizer steps, save there, and return what was seen."""
    recorder = Recorder()
    loop = trainer(steps, folder, limit_val_batches=0, **options)
    loop.fit(recorder, data, ckpt_path=checkpoint, weights_only=None if checkpoint is None else True)
    loop.save_checkpoint(folder / f"{steps}.ckpt")
    return recorder.trained


# Batches


def test_batch_shapes_and_types(shards: str) -> None:
    data = module(shards, image_size=(16, 24))
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert {name: value.dtype for name, value in batch.items() if isinstance(value, Tensor)} == {
        "image": torch.uint8,
        "position": torch.int64,
        "mask": torch.bool,
    }
    assert batch["image"].shape == (3, 3, 16, 24)
    assert batch["mask"].shape == (3, 1, 16, 24)
    assert batch["position"].tolist() == [0, 1, 2]
    assert batch["caption"] == [f"photo {int(name[1:])}" for name in batch["__key__"]]


def test_masks_from_mask_files(tmp_path: Path) -> None:
    white = encode(Image.new("L", (48, 40), 255))
    write_tar(tmp_path / "0.tar", [("a.png", encode(photo(1))), ("a.mask.png", white), ("b.png", encode(photo(2)))])
    data = module(str(tmp_path), batch_size=2)
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch["mask"].flatten(1).all(dim=1).tolist() == [True, False]
    assert "has_mask" not in batch


def test_mostly_white_masks_are_noticed_once(tmp_path: Path) -> None:
    white = encode(Image.new("L", (48, 40), 250))
    members = [member for i in range(4) for member in ((f"k{i}.png", encode(photo(i))), (f"k{i}.mask.png", white))]
    data = module(str(write_tar(tmp_path / "0.tar", members)), batch_size=32, image_size=8, num_workers=1)
    with pytest.warns(UserWarning, match="100% white, .*data.mask_sources") as seen:
        fit(data, 5, tmp_path)
    assert sum("white" in str(warning.message) for warning in seen) == 1


class Schedule(MaskGenerator):
    """Masks as many rows as optimizer steps were taken, and all of them at the end of the schedule."""

    step = 0

    def set_step(self, step: int) -> None:
        self.step = step

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        rows = (torch.arange(height) < self.step)[:, None]
        return rows.expand(len(keys), 1, height, width)


def test_a_curriculum_follows_the_optimizer_steps_and_a_resume(shards: str, tmp_path: Path) -> None:
    seen = fit(module(shards, mask_generator=Schedule()), 2, tmp_path, accumulate_grad_batches=2)
    seen += fit(module(shards, mask_generator=Schedule()), 3, tmp_path, tmp_path / "2.ckpt", accumulate_grad_batches=2)
    assert [row[-1] // 16 for row in seen] == [0] * 6 + [1] * 6 + [2] * 6
    recorder = Recorder()
    trainer(1, tmp_path).validate(recorder, module(shards, mask_generator=Schedule()), verbose=False)
    assert {row[-1] for row in recorder.validated} == {16 * 16}


def test_global_random_state_is_left_alone(shards: str) -> None:
    state = torch.random.get_rng_state()
    next(iter(module(shards).train_dataloader()))
    assert torch.random.get_rng_state().equal(state)


# Validation


def test_evaluation_is_the_same_every_time(shards: str, tmp_path: Path) -> None:
    recorder, data = Recorder(), module(shards, val_batch_size=5, num_workers=1)
    loop = trainer(2, tmp_path, val_check_interval=1, num_sanity_val_steps=0)
    loop.fit(recorder, data)
    loop.test(recorder, data, verbose=False)
    first, *others = [recorder.validated[i : i + 15] for i in range(0, len(recorder.validated), 15)]
    assert len(others) == 2
    assert all(other == first for other in others)
    assert [row[0] for row in first] == [*range(COUNT), -1, -1]
    assert [row[1] for row in first] == [f"p{number:03d}" for number in [*range(COUNT), 0, 1]]


def test_evaluation_length(shards: str) -> None:
    assert len(module(shards, val_batch_size=5).val_dataloader()) == 3


def test_training_without_validation_shards(shards: str, tmp_path: Path) -> None:
    data = WebDatasetDataModule(shards, batch_size=1, image_size=8, mask_generator=Halves())
    recorder = Recorder()
    trainer(2, tmp_path, val_check_interval=1).fit(recorder, data)
    assert (len(recorder.trained), recorder.validated) == (2, [])
    with pytest.raises(ValueError, match=r"data\.val_shards: expected shards to evaluate on, got null"):
        data.test_dataloader()


# Resume


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0)])
def test_resume_is_exact(shards: str, tmp_path: Path, before: int, after: int) -> None:
    """7 steps at once, or 3 and a restart with another number of workers: the same samples, crops and masks."""
    whole = fit(module(shards), 7, tmp_path, accumulate_grad_batches=2)
    first = fit(module(shards, num_workers=before), 3, tmp_path, accumulate_grad_batches=2)
    rest = fit(module(shards, num_workers=after), 7, tmp_path, tmp_path / "3.ckpt", accumulate_grad_batches=2)
    assert first + rest == whole
    assert [row[0] for row in whole] == list(range(7 * 2 * 3))
    assert sorted(row[1] for row in whole[:COUNT]) == [f"p{number:03d}" for number in range(COUNT)]


def test_resume_with_another_batch_size_keeps_the_stream(shards: str, tmp_path: Path) -> None:
    whole = fit(module(shards), 4, tmp_path)
    fit(module(shards), 2, tmp_path)
    rest = fit(module(shards, batch_size=1), 8, tmp_path, tmp_path / "2.ckpt")
    assert rest == whole[6:]


def test_short_epochs_go_on_in_the_stream(shards: str, tmp_path: Path) -> None:
    seen = fit(module(shards), 5, tmp_path, limit_train_batches=2)
    assert [row[0] for row in seen] == list(range(15))


def test_overfit_batches_repeats_them(shards: str, tmp_path: Path) -> None:
    seen = fit(module(shards), 4, tmp_path, overfit_batches=2)
    assert seen[:6] == seen[6:]


def test_a_second_fit_goes_on(shards: str, tmp_path: Path) -> None:
    data = module(shards)
    fit(data, 2, tmp_path)
    assert data.state_dict()["position"] == 6
    assert [row[0] for row in fit(data, 1, tmp_path)] == [6, 7, 8]


def test_an_exception_keeps_the_position(shards: str, tmp_path: Path) -> None:
    class Failing(Recorder):
        def on_train_batch_end(self, *_: Any) -> None:
            if self.global_step == 2:
                raise RuntimeError("stop")

    data = module(shards)
    with pytest.raises(RuntimeError, match="stop"):
        trainer(5, tmp_path, limit_val_batches=0).fit(Failing(), data)
    assert data.state_dict()["position"] == 6


def test_position_without_a_trainer(shards: str) -> None:
    data, other = module(shards), module(shards)
    data.load_state_dict({**other.state_dict(), "position": 20})
    batch = next(iter(data.train_dataloader()))
    assert batch["position"].tolist() == [20, 21, 22]
    batches = list(islice(module(shards).train_dataloader(), 8))
    assert batches[7]["__key__"][0] == next(iter(data.train_dataloader()))["__key__"][1]  # both position 21


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "data seed: expected 4 as in the checkpoint, got 5"),
        ({"window": 3}, "data window: expected 2 as in the checkpoint, got 3"),
    ],
)
def test_another_stream_is_refused(shards: str, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(shards, **change).load_state_dict(module(shards).state_dict())


def test_another_dataset_or_plan_is_refused(shards: str, tmp_path: Path) -> None:
    state = module(shards).state_dict()
    other = module(str(photo_shards(tmp_path, 2)))
    with pytest.raises(ValueError, match=r"data dataset_fingerprint: expected '[0-9a-f]{64}' as in the checkpoint"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="data plan_version: expected 0 as in the checkpoint, got 2"):
        module(shards).load_state_dict({**state, "plan_version": 0})
    with pytest.raises(ValueError, match="data seed: expected None as in the checkpoint, got 4"):
        module(shards).load_state_dict({name: state[name] for name in state if name != "seed"})


def test_evaluating_a_checkpoint_needs_no_training_data(shards: str, tmp_path: Path) -> None:
    fit(module(shards), 1, tmp_path)
    recorder = Recorder()
    data = WebDatasetDataModule("missing", shards, batch_size=5, image_size=16, mask_generator=Halves(), seed=9)
    trainer(1, tmp_path).test(recorder, data, ckpt_path=tmp_path / "1.ckpt", weights_only=True, verbose=False)
    assert len(recorder.validated) == 15


def test_training_without_end_is_refused(shards: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.max_steps: expected a number of optimizer steps, got -1"):
        fit(module(shards), -1, tmp_path)


def test_training_ends_by_epochs_or_time(shards: str, tmp_path: Path) -> None:
    assert len(fit(module(shards), -1, tmp_path, max_epochs=2, limit_train_batches=2)) == 2 * 2 * 3
    assert fit(module(shards), -1, tmp_path, max_time={"seconds": 1})


def test_two_optimizers_are_refused(shards: str, tmp_path: Path) -> None:
    class Adversarial(Recorder):
        automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]

    with pytest.raises(ValueError, match=r"model\.configure_optimizers: expected one optimizer, got 2"):
        trainer(2, tmp_path).fit(Adversarial(), module(shards))


def test_a_changing_accumulation_is_refused(shards: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.callbacks: expected no GradientAccumulationScheduler"):
        fit(module(shards), 2, tmp_path, callbacks=[GradientAccumulationScheduler({0: 2})])


def test_epochs_may_not_cut_an_accumulation_window(shards: str, tmp_path: Path) -> None:
    message = r"trainer\.limit_train_batches: expected a multiple of accumulate_grad_batches \(2\), got 3"
    with pytest.raises(ValueError, match=message):
        fit(module(shards), 2, tmp_path, limit_train_batches=3, accumulate_grad_batches=2)


# Configuration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "data.batch_size: expected at least 1, got 0"),
        ({"val_batch_size": 0}, "data.val_batch_size: expected at least 1, got 0"),
        ({"window": 0}, "data.window: expected at least 1, got 0"),
        ({"num_workers": -1}, "data.num_workers: expected at least 0, got -1"),
        ({"max_pixels": 0}, "data.max_pixels: expected at least 1, got 0"),
        ({"max_caption_bytes": -1}, "data.max_caption_bytes: expected at least 0, got -1"),
        ({"min_scale": 1.5}, "data.min_scale: expected 0 to 1, got 1.5"),
        ({"own_mask_probability": 2}, "data.own_mask_probability: expected 0 to 1, got 2"),
        ({"transfer_probability": -1}, "data.transfer_probability: expected 0 to 1, got -1"),
        ({"flip": -0.5}, "data.flip: expected 0 to 1, got -0.5"),
        ({"image_size": 0}, r"data.image_size: expected positive pixels, .* got \(0, 0\)"),
        ({"image_size": (8, 8, 8)}, r"data.image_size: expected positive pixels"),
        ({"background": (0, 0, 256)}, r"data.background: expected three numbers 0 to 255, got \(0, 0, 256\)"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module("unused", **change)


def command_line() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(WebDatasetDataModule, "data")
    return parser


def test_command_line_builds_it(shards: str) -> None:
    parser = command_line()
    config = {"train_shards": [shards], "val_shards": None, "batch_size": 2, "image_size": [8, 16]}
    config["mask_generator"] = {"class_path": "inpaint_module.masks.Boxes"}
    config["mask_sources"] = [
        {"class_path": "datamodules.FileMask", "init_args": {"inverted": True}},
        {"class_path": "datamodules.AlphaMask"},
        {"class_path": "datamodules.LabelMap", "init_args": {"ids": [3, 7]}},
        {"class_path": "datamodules.CocoMask", "init_args": {"category_ids": [1], "union": True}},
    ]
    config |= {"own_mask_probability": 0.5, "transfer_probability": 0.25, "allow_empty_masks": False}
    build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name until jsonargparse 4.49
    data = build(parser.parse_object({"data": config})).data
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 3, 8, 16)
    decoder = data.train_decoder
    assert [type(source).__name__ for source in decoder.masks.sources] == [
        "FileMask",
        "AlphaMask",
        "LabelMap",
        "CocoMask",
    ]
    assert vars(decoder.masks.sources[3]) == {"category_ids": [1], "union": True}
    assert (decoder.masks.probability, decoder.masks.allow_empty) == (0.5, False)


def test_help_explains_every_argument() -> None:
    lines = command_line().format_help().split("\n  --data.")
    explained = [line for line in lines if line.startswith(tuple("abcdefghijklmnopqrstuvwxyz"))]
    assert "Shards whose samples are mixed" in command_line().format_help()
    assert len(explained) >= 19
