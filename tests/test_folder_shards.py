"""A folder of pictures is trained from as the shards that make_shards makes of it are, and says what changed in it."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_fixtures import Halves, encode, exif_turned, in_parts, json_lines, photo, photo_folder, write_tar
from PIL import Image
from quiet_trainer import QUIET
from recorded_fits import fit

from datamodules import LoadingOptions, WebDatasetDataModule
from datamodules.make_shards import make_shards
from datamodules.writing import folder_shards
from datamodules.writing.folder_shards import what_changed

pytestmark = QUIET


def mixed_folder(folder: Path) -> Path:
    """All that make_shards reads beside pictures, and what it writes otherwise than it lies there."""
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "b.PNG", "c.webp", "sub/d.bmp", "sub/e f.jpeg", "g.tif"]):
        kind = {"jpg": "JPEG", "peg": "JPEG", "png": "PNG", "ebp": "WEBP", "bmp": "BMP", "tif": "TIFF"}[
            name[-3:].lower()
        ]
        photo(number, 48 + 8 * number).save(folder / name, kind)
    (folder / "a.txt").write_text("a caption\n")
    (folder / "b.txt").write_bytes("größe".encode("utf-16"))
    (folder / "c.json").write_text('{"caption": "in json"}')
    (folder / "a.cls").write_text("3")
    mask = np.zeros((40, 48), np.uint8)
    mask[10:20, 10:30] = 255
    (folder / "a.mask.png").write_bytes(encode(Image.fromarray(mask)))
    photo(9, 48, 40).save(folder / "a.target.png")
    (folder / "metadata.csv").write_text("file_name,text\ng.tif,of a table\n")
    turned = encode(photo(7), "JPEG", exif=exif_turned(), quality=90)
    (folder / "turned.jpg").write_bytes(turned)
    return folder


def module(source: Path, cache: Path, **options: Any) -> WebDatasetDataModule:
    settings = {"batch_size": 3, "image_size": 32, "mask_generator": Halves(), "cache_dir": str(cache), **options}
    return WebDatasetDataModule(str(source), **in_parts(**settings))


def same(one: Any, other: Any) -> bool:
    return one.equal(other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("options", [{}, {"bucket_step": 8, "removal_share": 0.5}], ids=["plain", "buckets"])
def test_the_stream_is_that_of_the_shards(tmp_path: Path, options: dict[str, Any]) -> None:
    folder = mixed_folder(tmp_path / "photos")
    make_shards(folder, tmp_path / "shards")
    ours, theirs = (module(tmp_path / name, tmp_path / "cache", **options) for name in ("photos", "shards"))
    assert ours.plan() == theirs.plan()
    for mine, other in zip(*(islice(data.train_dataloader(), 5) for data in (ours, theirs)), strict=True):
        assert mine.keys() == other.keys()
        assert all(same(mine[name], other[name]) for name in mine)
    for number in range(len(ours.train_set)):
        assert ours.train_set.read(number).fields == theirs.train_set.read(number).fields
        assert ours.train_set.read(number).key == theirs.train_set.read(number).key


def test_the_index_is_made_once_and_again_when_the_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = photo_folder(tmp_path / "photos", 5), tmp_path / "cache"
    before, read = module(folder, cache).plan(), []
    plain = folder_shards.try_source
    monkeypatch.setattr(
        folder_shards, "try_source", lambda source, packing: read.append(source) or plain(source, packing)
    )
    assert module(folder, cache).plan() == before
    assert not read
    os.utime(folder / "p001.jpg", ns=(1, 1))  # another time, the same bytes
    assert module(folder, cache).plan() == before
    assert len(read) == 5
    (folder / "p001.txt").write_text("another\n")
    assert module(folder, cache).plan() != before
    (index,) = (cache / "folders").glob("*/index.json")
    whole = index.read_text()
    for damaged in (whole[:-40], json.dumps(json.loads(whole) | {"tars": [{"name": 5}]}), json.dumps({"tars": 5})):
        index.write_text(damaged)
        del read[:]
        assert len(module(folder, cache).train_set) == len(read) == 5


def test_a_resume_is_to_the_bit_and_names_what_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, run = photo_folder(tmp_path / "photos", 7), tmp_path / "run"
    options: Any = {"image_size": 16, "window": 2}
    whole = fit(module(folder, tmp_path / "cache", **options), 4, tmp_path / "whole")
    first = fit(module(folder, tmp_path / "cache", **options), 2, run)
    rest = fit(module(folder, tmp_path / "cache", **options), 4, run, run / "2.ckpt")
    assert first + rest == whole
    (folder / "p001.jpg").unlink()
    (folder / "p003.txt").write_text("another\n")
    photo(8).save(folder / "q.png")
    with caplog.at_level("INFO"), pytest.raises(ValueError, match="data dataset_fingerprint: expected"):
        fit(module(folder, tmp_path / "cache", **options), 6, run, run / "4.ckpt")
    assert (
        "changed since this run started last: 1 added: q.png; 2 removed: p001.jpg, p001.txt; 1 changed: p003.txt"
        in caplog.text
    )


def test_what_changed() -> None:
    before = {"a": (1, 1), "b": (1, 1), **{f"c{number}": (1, 1) for number in range(7)}}
    assert what_changed(before, {"a": [1, 1], "b": [1, 2]}) == (
        "7 removed: c0, c1, c2, c3, c4 and 2 more; 1 changed: b"
    )
    assert what_changed(before, before) == ""


def test_pictures_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, cache = photo_folder(tmp_path / "photos", 6), tmp_path / "cache"
    (folder / "bad.jpg").write_bytes((folder / "p000.jpg").read_bytes()[:300])
    data = module(folder, cache, image_size=16)
    with caplog.at_level("INFO"):
        fit(data, 2, tmp_path / "run")
    assert len(data.train_set) == 6
    assert "1 of 7 pictures cannot be used and are left out" in caplog.text
    (line,) = json_lines(tmp_path / "run" / "quarantine.jsonl")
    assert (line["key"], line["position"]) == ("bad.jpg", -1)
    assert "bad.jpg" in line["reason"]
    strict = module(folder, cache, max_bad_share=0.0)
    with pytest.raises(
        ValueError, match=r"data\.train_shards: .*photos: expected pictures .* got 1 of 7 that cannot: "
    ):
        strict.train_set  # noqa: B018
    evaluated = WebDatasetDataModule(
        str(folder),
        str(folder),
        batch_size=1,
        image_size=8,
        mask_generator=Halves(),
        loading=LoadingOptions(cache_dir=str(cache)),
    )
    with pytest.raises(ValueError, match=r"data\.val_shards: .*mend or remove them$"):
        evaluated.val_set  # noqa: B018


def test_a_picture_that_changes_in_the_run_is_bad(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "photos", 4)
    data = module(folder, tmp_path / "cache")
    assert len(data.train_set) == 4
    (folder / "p001.jpg").write_bytes((folder / "p002.jpg").read_bytes())
    (folder / "p002.txt").unlink()
    notes = [note for batch in islice(data.train_dataloader(), 3) for note in batch.get("notes", {}).get("bad", ())]
    assert any("p001.jpg: expected the file as it was at the start" in note for note in notes)
    assert any("p002.txt: expected the file that was there at the start, got none" in note for note in notes)


def test_tars_and_pictures_in_one_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = photo_folder(tmp_path / "both", 2)
    write_tar(folder / "0.tar", [("x.png", encode(photo(1)))])
    with caplog.at_level("INFO"):
        data = module(folder, tmp_path / "cache")
        assert [data.train_set.read(number).key for number in range(len(data.train_set))] == ["x"]
    assert "both holds both tars and pictures: its 1 tars are read, its pictures are not" in caplog.text


def test_a_mixture_of_folder_and_shards(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "photos", 3)
    make_shards(folder, tmp_path / "shards")
    options = in_parts(cache_dir=str(tmp_path / "cache"), source_weights=[1.0, 3.0])
    both = [str(folder), str(tmp_path / "shards")]
    data = WebDatasetDataModule(both, batch_size=4, image_size=8, mask_generator=Halves(), **options)
    assert len(data.train_set) == 6
    assert json.loads(json.dumps(data.plan()))["source_samples"] == [3, 3]
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 3, 8, 8)
