"""Manifest and index files: what is written is what is read, and what cannot be true is refused."""

import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from data_fixtures import encode, photo, write_tar

from datamodules.decode.reading import image_size
from datamodules.index_shards import index_shards
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


def elsewhere(path: Path, tar: Path) -> str:
    """A manifest that names a file by its path."""
    row = {**ROW, "bytes": tar.stat().st_size, "path": str(path)}
    return json.dumps({"version": 1, "shards": [row]})


@pytest.mark.parametrize("target", ["notes.txt", "notes.tar", "../folder/0.tar", "0.tar", "pipe.tar"])
def test_a_path_may_lead_to_tars_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Not to a file that is no tar, nor to one by a relative path."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("notes.txt", "notes.tar"):
        (tmp_path / name).write_text("root:x:0:0\n" * 100)
    os.mkfifo(tmp_path / "pipe.tar")
    tar = write_tar(folder / "0.tar", PHOTOS)
    path = Path(target) if "0.tar" in target else tmp_path / target
    (folder / "manifest.json").write_text(elsewhere(path, path))
    with pytest.raises(ValueError, match=r"manifest\.json: 0\.tar: expected the absolute path of a tar, NAME\.tar"):
        read_manifest(folder)
    (folder / "manifest.json").write_text(elsewhere(tar, tar))
    assert read_manifest(folder)[0].path == str(tar)


def test_a_link_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    """Into it, it may; index_shards names the path of what lies elsewhere."""
    folder = tmp_path / "folder"
    folder.mkdir()
    tar = write_tar(tmp_path / "elsewhere.tar", PHOTOS)
    (folder / "0.tar").symlink_to(tar)
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "shards": [{**ROW, "bytes": tar.stat().st_size}]}))
    with pytest.raises(ValueError, match=r"0\.tar: expected a tar in the manifest's own folder, got a link to "):
        read_manifest(folder)
    (folder / "manifest.json").unlink()
    assert len(open_shards(str(folder))) == 2  # its headers say what it is
    index_shards(str(folder))
    assert len(open_shards(str(folder))) == 2
    (folder / "0.tar").unlink()
    tar.rename(folder / "1.tar")
    (folder / "0.tar").symlink_to("1.tar")
    write_manifest(folder)
    assert len(open_shards(str(folder))) == 4


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


INDEX = {
    "version": 1,
    "bytes": 10_240,
    "keys": ["a", "b"],
    "fields": [{"jpg": [512, 100], "txt": [1536, 5]}, {"png": [2560, 9]}],
    "sizes": [[1, 2], [3, 4]],
    "aside": {"folders": [1, ["d/"]]},
}
MANIFEST = {"version": 1, "shards": [ROW, {**ROW, "name": "1.tar", "url": "https://host/1.tar", "aside": 3}]}
WRONG: list[Any] = [None, True, -1, 2**63, 10**4000, 1.5, -0.0, "", "../x", "\0", "\ud800", "x" * 10_000, [], [1]]
WRONG += [[[1, 2]], [None] * 2, [[512, 100]] * 2, ["a", "a"], {}, {"jpg": [512, 1]}, {"pkl": [512, 1]}]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a nested one."""
    yield path
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from places(value[key], (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return new
    outer = inner = copy.deepcopy(value)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return outer


@pytest.mark.parametrize(
    ("source", "parse"),
    [
        (INDEX, lambda text: parse_index(text, "there", Shard("/x/0.tar", 2, 10_240, "0" * 64))),
        (MANIFEST, lambda text: parse_manifest(text, "there")),
    ],
    ids=["index", "manifest"],
)
def test_wrong_values_anywhere_are_named(source: dict[str, Any], parse: Callable[[str], Any]) -> None:
    """Every value of a file in place of which every wrong one stands: it still fits, or the error says where not."""
    parse(json.dumps(source))
    refused = 0
    for path in places(source):
        for wrong in WRONG:
            try:
                parse(json.dumps(put(source, path, wrong)))
            except ValueError as error:
                assert re.match(r"there: .{10,400}$", str(error))  # noqa: PT017, some still fit
                refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            [{"jpg": [512, 10_000]}, {"png": [2560, 9]}],
            r"fields\[0\]\.jpg: expected \[offset, size\] after byte 511 and b",
        ),
        ([{"jpg": [512, 100]}, {"png": [1000, 9]}], r"fields\[1\]\.png: expected \[offset, size\] after byte 1123"),
        ([{"jpg": [512, -1]}, {"png": [2560, 9]}], r"fields\[0\]\.jpg: .*, got \[512, -1\]"),
        ([{"jpg": [512, True]}, {"png": [2560, 9]}], r"fields\[0\]\.jpg: .*, got \[512, True\]"),
        ([{"jpg": [512, 1], "png": [2560, 9]}, {"png": [9000, 9]}], r"fields\[0\]: expected one image"),
        ([{"txt": [512, 1]}, {"png": [2560, 9]}], r"fields\[0\]: expected one image"),
        (
            [{"jpg": [512, 1], "pkl": [2560, 9]}, {"png": [9000, 9]}],
            r"fields\[0\]: expected one image, and other fields",
        ),
    ],
)
def test_places_that_cannot_be(fields: object, message: str) -> None:
    """Outside the shard, over each other, of no bytes, or of what is never read."""
    with pytest.raises(ValueError, match=f"^there: {message}.*; make it again$"):
        parse_index(json.dumps({**INDEX, "fields": fields}), "there", Shard("/x/0.tar", 2, 10_240, "0" * 64))
