"""Manifest and index files: what is written is what is read, and what cannot be true is refused."""

import json
from pathlib import Path

import pytest
from data_fixtures import encode, photo, write_tar

from datamodules.images.image_sizes import image_size
from datamodules.shards.manifest import (
    JOURNAL,
    ManifestRow,
    Shard,
    index_digest,
    index_path,
    load_index,
    parse_index,
    parse_manifest,
    read_manifest,
    write_manifest,
    write_rows,
)
from datamodules.shards.shard_specs import open_shards
from datamodules.shards.tar_index import ShardIndex, index_shard

PHOTOS = [("a.jpg", encode(photo(1), "JPEG")), ("a.txt", b"one"), ("b.png", encode(photo(2, 30, 20)))]
ROW = {"name": "0.tar", "count": 2, "bytes": 10, "sha256": "0" * 64}


def test_sizes_are_written_read_and_optional(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", PHOTOS)
    (shard,) = write_manifest(tmp_path, measure=image_size)
    assert load_index(shard).sizes == [(48, 40), (30, 20)]
    scanned = index_shard(shard.path)
    assert (scanned.keys, scanned.sizes) == (["a", "b"], None)
    assert [list(fields) for fields in load_index(shard).fields] == [["jpg", "txt"], ["png"]]
    before = open_shards(str(tmp_path)).fingerprint
    (old,) = write_manifest(tmp_path)
    assert "sizes" not in json.loads(index_path(Path(old.path)).read_text())
    assert load_index(old).sizes is None
    assert open_shards(str(tmp_path)).fingerprint == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [[1, 2]]}, "expected 2 sizes, got 1"),
        ({"sizes": [[1, 2], 3]}, r"expected sizes \[\[width, height\], ...\]"),
        ({"sizes": [[1, 2], [None, 1]]}, r"expected sizes \[\[width, height\], ...\]"),
        ({"bytes": 1}, r"bytes and 2 samples, got \(1, 2, 2\)"),
        ({"keys": ["a", "../b"]}, r"expected keys that stay in their folder, got \['\.\./b'\]"),
        ({"version": 9}, "expected version 1, got 9"),
    ],
)
def test_index_that_does_not_fit(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_tar(tmp_path / "0.tar", PHOTOS)
    (shard,) = write_manifest(tmp_path, measure=image_size)
    content = json.loads(index_path(tmp_path / "0.tar").read_text())
    with pytest.raises(ValueError, match=f"^there: .*{message}"):
        parse_index(json.dumps({**content, **change}), "there", shard)


def test_manifest_of_tars_that_lie_elsewhere(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", PHOTOS)
    out = tmp_path / "out"
    out.mkdir()
    rows = [
        ManifestRow("0.tar", 2, tar.stat().st_size, "1" * 64, path=str(tar)),
        ManifestRow("1.tar", 2, 7, "2" * 64, url="https://host/1.tar"),
    ]
    write_rows(out, rows)
    assert parse_manifest((out / "manifest.json").read_text(), "x") == rows
    assert read_manifest(out) == [
        Shard(str(tar), 2, rows[0].bytes, "1" * 64, index_file=str(out / "0.index.json")),
        Shard("https://host/1.tar", 2, 7, "2" * 64, index_file=str(out / "1.index.json")),
    ]
    tar.unlink()
    with pytest.raises(ValueError, match=r"0\.tar: expected \d+ bytes by manifest\.json, got no such file"):
        read_manifest(out)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../0.tar"},
        {"name": "a/0.tar"},
        {"name": ""},
        {"name": "a\\0.tar"},
        {"name": ".."},
        {"name": 3},
        {"sha256": "abc"},
        {"count": -1},
        {"count": True},
        {"bytes": "9"},
        {"url": 3},
    ],
)
def test_rows_that_cannot_be_true(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^there: not a valid row: .*; make it again"):
        parse_manifest(json.dumps({"version": 1, "shards": [{**ROW, **change}]}), "there")


@pytest.mark.parametrize("rows", [[{"name": "0.tar"}], [3], [None]])
def test_rows_that_are_none(rows: list[object]) -> None:
    with pytest.raises(ValueError, match=r"^there: not a valid row"):
        parse_manifest(json.dumps({"version": 1, "shards": rows}), "there")


def test_a_shard_twice() -> None:
    with pytest.raises(ValueError, match=r"there: expected every shard once, got \['0\.tar'\] more than once"):
        parse_manifest(json.dumps({"version": 1, "shards": [ROW, ROW]}), "there")


def test_an_unfinished_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 1, "shards": [ROW]}))
    (tmp_path / JOURNAL).touch()
    with pytest.raises(ValueError, match="no such file; make_shards was interrupted here, run it again"):
        read_manifest(tmp_path)


def test_digest_of_an_index_ignores_sizes() -> None:
    index = ShardIndex(["a"], [{"jpg": (512, 3)}])
    assert index_digest(index) == index_digest(index._replace(sizes=[(1, 2)]))
