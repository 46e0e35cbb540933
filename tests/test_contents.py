"""What shards hold besides images, and that masks of their own are named when training begins."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from data_fixtures import Halves, encode, photo, write_tar
from quiet_trainer import quiet_trainer

from datamodules import CocoMask, MaskOptions, WebDatasetDataModule
from datamodules.decode.mask_files import how_often_line
from datamodules.decode.mask_sources import MaskSource
from datamodules.shards.shard_set import look_into
from datamodules.shards.shard_specs import open_shards
from datamodules.shards.tar_index import account_of, kinds_of


def shards(folder: Path, count: int, masks: int) -> str:
    """Tars of two samples each; the first `masks` samples have a mask."""
    folder.mkdir(exist_ok=True)
    image, mask = encode(photo(1)), encode(photo(1).convert("L"))
    for tar in range(count // 2):
        numbers = (2 * tar, 2 * tar + 1)
        members = [[(f"{n}.png", image), *[(f"{n}.mask.png", mask)] * (n < masks), (f"{n}.txt", b"t")] for n in numbers]
        write_tar(folder / f"{tar:03d}.tar", [member for sample in members for member in sample])
    return str(folder)


def test_kinds() -> None:
    assert kinds_of(["jpg", "txt", "mask.jpg", "cls", "json"]) == ("captions", "masks", "labels", "json")
    assert kinds_of(["png", "seg.png"]) == ("labels",)
    assert kinds_of(["png"]) == ()


def test_a_small_set_is_looked_at_whole(tmp_path: Path) -> None:
    found = look_into(open_shards(shards(tmp_path, 8, 3)))
    assert found.whole
    assert found.account.found == {"captions": 8, "masks": 3, "labels": 0, "json": 0}
    assert account_of(open_shards(str(tmp_path)).index(1)).found["masks"] == 1
    told = how_often_line(found, 0.5)
    assert told is not None
    assert told.startswith(
        "data: 38% of the training samples (3 of 8) have a mask of their own, which is used in place"
    )
    assert "at 50% of their visits (data.masks.share: 0.5)" in told
    assert how_often_line(found, 0) is None


def test_a_large_set_is_looked_at_in_part(tmp_path: Path) -> None:
    found = look_into(open_shards(shards(tmp_path, 80, 40)))
    assert (found.account.taken, found.samples, found.account.found["masks"]) == (64, 80, 32)
    assert "50% of the training samples (32 of 64 looked at, of 80 in all)" in str(how_often_line(found, 1))


@pytest.mark.parametrize(
    ("masks", "sources", "probability", "told"),
    [(2, None, 1.0, True), (0, None, 1.0, False), (2, [CocoMask()], 1.0, False), (2, None, 0.0, False)],
)
def test_training_begins_with_a_word_on_masks_in_the_shards(
    masks: int,
    sources: list[MaskSource] | None,
    probability: float,
    told: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = WebDatasetDataModule(
        shards(tmp_path, 4, masks),
        batch_size=2,
        image_size=16,
        mask_generator=Halves(),
        masks=MaskOptions(sources=sources, share=probability),
    )
    data.trainer = quiet_trainer(1)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        data.train_dataloader()
        data.train_dataloader()
    words = [record.message for record in caplog.records if "have a mask of their own" in record.message]
    assert len(words) == told
