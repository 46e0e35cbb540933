"""WebDatasetDataModule: batches with masks, evaluation, and arguments."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import Halves, encode, photo, photo_shards, write_tar
from jsonargparse import ArgumentParser
from PIL import Image
from quiet_trainer import QUIET, quiet_trainer
from recorded_fits import COUNT, Recorder, fit, module
from torch import Tensor

from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.batch import SIZE_FIELDS

pytestmark = QUIET


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(photo_shards(tmp_path_factory.mktemp("data"), COUNT))


def test_batch_shapes_and_types(shards: str) -> None:
    data = module(shards, image_size=(16, 24))
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert {name: value.dtype for name, value in batch.items() if isinstance(value, Tensor)} == {
        "image": torch.uint8,
        "position": torch.int64,
        "mask": torch.bool,
        **dict.fromkeys(SIZE_FIELDS, torch.int64),
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


def test_without_a_generator_there_are_no_masks(tmp_path: Path) -> None:
    members = [("a.png", encode(photo(1))), ("a.mask.png", encode(Image.new("L", (48, 40), 255)))]
    data = module(str(write_tar(tmp_path / "0.tar", members)), mask_generator=None)
    assert not data.has_masks
    assert "mask" not in data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert data.plan()["masks_sha256"] is None


def test_mostly_white_masks_are_noticed_once(tmp_path: Path) -> None:
    white = encode(Image.new("L", (48, 40), 250))
    members = [member for i in range(4) for member in ((f"k{i}.png", encode(photo(i))), (f"k{i}.mask.png", white))]
    data = module(str(write_tar(tmp_path / "0.tar", members)), batch_size=32, image_size=8, num_workers=1)
    with pytest.warns(UserWarning, match="100% white, .*data.masks.sources") as seen:
        fit(data, 5, tmp_path)
    assert sum("white" in str(warning.message) for warning in seen) == 1


def test_global_random_state_is_left_alone(shards: str) -> None:
    state = torch.random.get_rng_state()
    next(iter(module(shards).train_dataloader()))
    assert torch.random.get_rng_state().equal(state)


def test_evaluation_is_the_same_every_time(shards: str, tmp_path: Path) -> None:
    recorder, data = Recorder(), module(shards, val_batch_size=5, num_workers=1)
    loop = quiet_trainer(2, default_root_dir=tmp_path, val_check_interval=1, num_sanity_val_steps=0)
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
    recorder, began = Recorder(), time.perf_counter()
    quiet_trainer(2, default_root_dir=tmp_path, val_check_interval=1).fit(recorder, data)
    assert began < data.batch_arrived < time.perf_counter()
    assert (len(recorder.trained), recorder.validated) == (2, [])
    with pytest.raises(ValueError, match=r"data\.val_shards: expected shards to evaluate on, got null"):
        data.test_dataloader()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "data.batch_size: expected at least 1, got 0"),
        (
            {"mask_generator": None, "padding_mask_crop": 8},
            "data.masks.padding_mask_crop: expected none without masks, got 8",
        ),
        ({"val_batch_size": 0}, "data.val_batch_size: expected at least 1, got 0"),
        ({"window": 0}, "data.order.window: expected at least 1, got 0"),
        ({"num_workers": -1}, "data.num_workers: expected at least 0, got -1"),
        ({"max_pixels": 0}, "data.decoder.max_pixels: expected at least 1, got 0"),
        ({"max_caption_bytes": -1}, "data.decoder.max_caption_bytes: expected at least 0, got -1"),
        ({"min_scale": 1.5}, "data.decoder.min_scale: expected 0 to 1, got 1.5"),
        ({"share": 2}, "data.masks.share: expected 0 to 1, got 2"),
        ({"removal_share": -1}, "data.masks.removal_share: expected 0 to 1, got -1"),
        ({"flip": -0.5}, "data.decoder.flip: expected 0 to 1, got -0.5"),
        ({"image_size": 0}, r"data.image_size: expected positive pixels, .* got \(0, 0\)"),
        ({"image_size": (8, 8, 8)}, r"data.image_size: expected positive pixels"),
        ({"bucket_step": 0}, "data.order.bucket_step: expected at least 1 pixel, got 0"),
        ({"bucket_step": 64}, "data.image_size: expected at least 64 x 64"),
        ({"max_bad_share": 1.5}, "data.loading.max_bad_share: expected 0 to 1, got 1.5"),
        ({"stall_timeout": -1.0}, "data.loading.stall_timeout: expected at least 0, got -1.0"),
        ({"cache_bytes": 0}, "data.loading.cache_bytes: expected at least 1, got 0"),
        ({"background": (0, 0, 256)}, r"data.decoder.background: expected three numbers 0 to 255, got \(0, 0, 256\)"),
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
    sources = [
        {"class_path": "datamodules.FileMask", "init_args": {"inverted": True}},
        {"class_path": "datamodules.AlphaMask"},
        {"class_path": "datamodules.LabelMap", "init_args": {"ids": [3, 7]}},
        {"class_path": "datamodules.CocoMask", "init_args": {"category_ids": [1], "union": True}},
    ]
    config["masks"] = {"sources": sources, "share": 0.5, "removal_share": 0.25, "allow_empty": False}
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
    assert (decoder.masks.share, decoder.masks.allow_empty) == (0.5, False)


def test_help_explains_every_argument() -> None:
    lines = command_line().format_help().split("\n  --data.")
    explained = [line for line in lines if line.startswith(tuple("abcdefghijklmnopqrstuvwxyz"))]
    assert "Shards whose samples are mixed" in command_line().format_help()
    assert len(explained) >= 19
