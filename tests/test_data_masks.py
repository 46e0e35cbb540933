"""Masks from the data in batches: mixed, lent and missing ones are functions of (seed, position) alone."""

import json
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from data_fixtures import Halves, encode, in_parts, photo, write_tar
from PIL import Image

from datamodules.decode.coco_masks import CocoMask
from datamodules.decode.mask_sources import FileMask
from datamodules.webdataset_datamodule import WebDatasetDataModule

POSITIONS = 24


def disc(number: int) -> bytes:
    """Another object for each number."""
    y, x = np.mgrid[:40, :48]
    return encode(Image.fromarray((((x - 24) ** 2 + (y - 20) ** 2 < (6 + number) ** 2) * 255).astype(np.uint8)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three shards of four photos: two with a mask, one with a polygon, one with nothing."""
    folder = tmp_path_factory.mktemp("data")
    polygon = json.dumps({"segmentation": [[0, 0, 48, 0, 48, 20, 0, 20]]}).encode()
    for shard in range(3):
        members = []
        for number in range(4):
            name = f"p{shard}{number}"
            members.append((f"{name}.png", encode(photo(4 * shard + number))))
            if number < 2:
                members.append((f"{name}.mask.png", disc(4 * shard + number)))
            elif number == 2:
                members.append((f"{name}.json", polygon))
        write_tar(folder / f"{shard}.tar", members)
    return str(folder)


def module(shards: str, **options: Any) -> WebDatasetDataModule:
    settings = {"batch_size": 4, "image_size": 16, "mask_generator": Halves(), "seed": 5, "window": 2, **options}
    return WebDatasetDataModule(shards, shards, **in_parts(sources=[FileMask(), CocoMask()], **settings))


def masks(data: WebDatasetDataModule, loader: str = "train_dataloader") -> torch.Tensor:
    """The masks of the first positions."""
    batches = islice(getattr(data, loader)(), POSITIONS // data.batch_size)
    return torch.cat([data.on_after_batch_transfer(batch, 0)["mask"] for batch in batches])


MIXED = {"share": 0.6, "removal_share": 0.5, "allow_empty": False}


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_purity(shards: str, loader: str) -> None:
    """Batch size, workers, ranks and the start do not change any mask."""
    whole = masks(module(shards, **MIXED), loader)
    assert masks(module(shards, batch_size=3, **MIXED), loader).equal(whole)
    assert masks(module(shards, batch_size=2, num_workers=2, **MIXED), loader).equal(whole)
    assert not masks(module(shards, **{**MIXED, "seed": 6}), loader).equal(whole)


def test_purity_over_ranks_and_starts(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = masks(module(shards, **MIXED))
    ranks = []
    for rank in range(2):
        data = module(shards, batch_size=2, **MIXED)
        monkeypatch.setattr(data, "rank_and_world", lambda rank=rank: (rank, 2))
        ranks.append(masks(data)[: POSITIONS // 2].unflatten(0, (-1, 2)))
    assert torch.stack(ranks, dim=1).flatten(0, 2).equal(whole)
    resumed = module(shards, **MIXED)
    resumed.load_state_dict({**resumed.state_dict(), "position": 8})
    assert masks(resumed)[:16].equal(whole[8:])


def test_probabilities_of_zero_and_one(shards: str) -> None:
    painted = masks(module(shards, share=0.0))
    own = masks(module(shards))
    lent = masks(module(shards, removal_share=1.0))
    columns = painted[:, :, :1].expand_as(painted)
    assert painted.equal(columns)
    share = (own == painted).flatten(1).all(dim=1).double().mean()
    assert share == pytest.approx(0.25, abs=0.1)
    assert not lent.equal(own)
    assert (lent == own).flatten(1).all(dim=1).double().mean() < 0.5


def test_images_are_those_without_transfer(shards: str) -> None:
    plain, lent = (next(iter(module(shards, removal_share=p).train_dataloader())) for p in (0.0, 1.0))
    assert plain["image"].equal(lent["image"])
    assert plain["__key__"] == lent["__key__"]
