"""Shards: any sample by its number, and a manifest that must fit its folder."""

import json
import pickle
import re
from pathlib import Path

import pytest
from data_fixtures import write_tar

from datamodules.shards import shard_set as shards
from datamodules.shards.manifest import index_path, load_index, read_manifest, write_manifest
from datamodules.shards.shard_set import ShardSet
from datamodules.shards.shard_specs import find_shards, open_shards

PAIR = [("a.jpg", b"image a"), ("a.txt", b"one"), ("d/b.png", b"image b"), ("d/b.mask.png", b"mask b")]


def test_manifest_and_scan_agree(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", PAIR)
    scanned = find_shards(str(tmp_path))[0]
    written = write_manifest(tmp_path)[0]
    read = find_shards(str(tmp_path))[0]
    assert written == read == find_shards(str(tmp_path / "*.tar"))[0]
    assert (read.count, read.bytes) == (scanned.count, scanned.bytes) == (2, (tmp_path / "0.tar").stat().st_size)
    assert re.fullmatch("[0-9a-f]{64}", read.digest)
    assert scanned.digest.startswith("index:")
    by_file, by_scan = open_shards(str(tmp_path)), ShardSet([scanned])
    assert [by_file.read(i) for i in range(2)] == [by_scan.read(i) for i in range(2)]


def test_samples_are_numbered_through_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_OPEN_SHARDS", 1)
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", [(f"k{number}{i}.jpg", b"%d" % i) for i in range(number + 1)])
    opened = pickle.loads(pickle.dumps(open_shards(str(tmp_path))))
    assert len(opened) == 6
    assert [opened.read(i).key for i in (5, 0, 1, 3, 4, 2)] == ["k22", "k00", "k10", "k20", "k21", "k11"]
    assert opened.read(4).fields == {"jpg": b"1"}


def test_fingerprint_follows_the_content_not_the_folder(tmp_path: Path) -> None:
    for folder, data in (("x", b"1"), ("y", b"1"), ("z", b"2")):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", [("a.jpg", data)])
        write_manifest(tmp_path / folder)
    x, y, z = (open_shards(str(tmp_path / folder)).fingerprint for folder in "xyz")
    assert x == y != z


def test_a_shard_that_shrank_since_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_PAUSES", (0.0,))
    path = write_tar(tmp_path / "0.tar", PAIR)
    opened = open_shards(str(tmp_path))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(OSError, match=r"0\.tar: sample 'd/b': the file ends inside"):
        opened.read(1)


@pytest.mark.parametrize("change", ["size", "missing", "extra"])
def test_manifest_must_fit_its_folder(tmp_path: Path, change: str) -> None:
    path = write_tar(tmp_path / "0.tar", PAIR)
    write_manifest(tmp_path)
    if change == "size":
        path.write_bytes(path.read_bytes() + bytes(512))
    elif change == "missing":
        path.unlink()
    else:
        write_tar(tmp_path / "1.tar", PAIR)
    text = {"size": r"expected 10240 bytes by manifest\.json, got 10752", "missing": "no such file", "extra": "1.tar"}
    with pytest.raises(ValueError, match=text[change]):
        read_manifest(tmp_path)


def test_index_must_fit_its_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", PAIR)
    shard = write_manifest(tmp_path)[0]
    file = index_path(tmp_path / "0.tar")
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "bytes": 1}))
    with pytest.raises(ValueError, match=r"0\.index\.json: expected 10240 bytes and 2 samples, got \(1, 2, 2\)"):
        load_index(shard)
    file.write_text(json.dumps({**content, "keys": ["a", "../../b"]}))
    with pytest.raises(
        ValueError, match=r"0\.index\.json: expected keys that stay in their folder, got \['\.\./\.\./b'\]"
    ):
        load_index(shard)
    file.unlink()
    assert load_index(shard).keys == ["a", "d/b"]


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"version": 2, "shards": []}', '{"version": 1}'])
def test_unreadable_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: not a valid file of this kind"):
        read_manifest(tmp_path)
