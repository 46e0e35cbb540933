"""What the data module makes of its stream: mixed sources, batches of one shape, bad samples, labels, transforms."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import encode, photo, photo_shards, write_tar
from quiet_trainer import QUIET
from recorded_fits import COUNT, fit, module, rows
from torch import nn
from torchvision.transforms import v2

from datamodules.index_shards import index_shards
from datamodules.shards.manifest import write_manifest

pytestmark = QUIET
SHAPES = [(48, 24), (24, 48), (40, 40)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(photo_shards(tmp_path_factory.mktemp("data"), COUNT))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """15 wide, tall and square photos, indexed with their sizes."""
    folder = tmp_path_factory.mktemp("shapes")
    for shard in range(3):
        numbers = range(5 * shard, 5 * shard + 5)
        write_tar(folder / f"{shard}.tar", [(f"p{n:02d}.png", encode(photo(n, *SHAPES[n % 3]))) for n in numbers])
    index_shards(str(folder))
    return str(folder)


def batches(data: Any, count: int) -> list[dict[str, Any]]:
    return list(islice(data.train_dataloader(), count))


def keys(data: Any, count: int) -> list[str]:
    return [key for batch in batches(data, count) for key in batch["__key__"]]


def test_sources_are_drawn_by_weight(shards: str, shapes: str) -> None:
    data = module([shards, shapes], source_weights=[1, 3], batch_size=32)
    found = keys(data, 4)
    first = data.train_order(torch.arange(4096)) < COUNT  # a whole cycle
    assert first.sum() == 1024
    assert [len(key) == 4 for key in found] == first[:128].tolist()
    assert set(data.plan()) >= {"source_weights", "source_samples", "dataset_fingerprint"}


def test_batches_of_one_shape_near_the_budget(shapes: str) -> None:
    data = module(shapes, image_size=32, bucket_step=8, batch_size=5)
    plain = module(shapes, image_size=32, batch_size=5)
    found = batches(data, 64)  # a whole group
    sizes = {tuple(batch["image"].shape[-2:]) for batch in found}
    assert all(height % 8 == width % 8 == 0 and height * width <= 32 * 32 for height, width in sizes)
    assert len(sizes) == 3
    assert all(batch["mask"].shape[-2:] == batch["image"].shape[-2:] for batch in batches_on_device(data, 2))
    assert sorted(key for batch in found for key in batch["__key__"]) == sorted(keys(plain, 64))


def batches_on_device(data: Any, count: int) -> list[dict[str, Any]]:
    return [data.on_after_batch_transfer(batch, 0) for batch in batches(data, count)]


def test_buckets_resume_where_they_were(shapes: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": 32, "bucket_step": 8, "batch_size": 3}
    whole = fit(module(shapes, **options), 6, tmp_path / "a")
    parts = fit(module(shapes, **options), 4, tmp_path / "b")
    parts += fit(module(shapes, **options), 6, tmp_path / "b", tmp_path / "b" / "4.ckpt")
    assert parts == whole
    for other, name in (
        ({"image_size": 32, "batch_size": 3}, "batch_size"),
        ({**options, "batch_size": 5}, "batch_size"),
    ):
        with pytest.raises(ValueError, match=f"data {name}: expected 3 as in the checkpoint"):
            fit(module(shapes, **other), 7, tmp_path / "c", tmp_path / "b" / "4.ckpt")


def test_a_bad_sample_is_replaced_and_written_down(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    members = [(f"p{n}.png", encode(photo(n)) if n != 2 else b"\x89PNG no image") for n in range(6)]
    write_tar(tmp_path / "data" / "0.tar", members)
    write_manifest(tmp_path / "data")
    options: dict[str, Any] = {"max_bad_share": 0.5}
    data = module(str(tmp_path / "data"), **options)
    data.val_shards = None
    seen = fit(data, 4, tmp_path / "run")
    assert len(seen) == 12
    assert "p2" not in {row[1] for row in seen}
    (line,) = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()[:1]
    assert json.loads(line)["key"] == "p2"
    strict = module(str(tmp_path / "data"), max_bad_share=0.0)
    with pytest.raises(ValueError, match="sample 'p2'"):
        batches(strict, 4)


def test_labels_and_their_absence(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [(f"p{n}.{suffix}", data) for n in range(3) for suffix, data in labelled(n)])
    (batch,) = batches(module(str(tmp_path), label_key="class"), 1)
    assert batch["label"].tolist() == [int(key[1:]) + 10 for key in batch["__key__"]]
    assert batch["label"].dtype == torch.int64
    (batch,) = batches(module(str(tmp_path)), 1)
    assert "label" not in batch


def labelled(number: int) -> list[tuple[str, bytes]]:
    return [("png", encode(photo(number))), ("cls", b"%d" % (number + 10))]


def test_augmentations_are_functions_of_the_position(shards: str) -> None:
    transforms: list[nn.Module] = [v2.ColorJitter(brightness=0.5), v2.RandomGrayscale(0.5)]
    plain, first, second = (module(shards, transforms=t, batch_size=3) for t in (None, transforms, transforms))
    torch.manual_seed(1)
    one = [rows(batch) for batch in batches_on_device(first, 4)]
    torch.manual_seed(2)
    assert one == [rows(batch) for batch in batches_on_device(second, 4)]
    assert one != [rows(batch) for batch in batches_on_device(plain, 4)]


def test_buckets_need_sizes_in_the_index(shards: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", encode(photo(0)))])
    with pytest.raises(ValueError, match="expected image sizes in its index, got none"):
        batches(module(str(tmp_path), bucket_step=8, image_size=32), 1)


def test_weights_must_fit_the_sources(shards: str) -> None:
    with pytest.raises(ValueError, match=r"data\.order\.source_weights"):
        batches(module([shards, shards], source_weights=[1]), 1)
