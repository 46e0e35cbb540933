"""Shards: the index finds every byte, and refuses every tar that could lose or mix samples."""

import gzip
import json
import pickle
import re
import tarfile
from pathlib import Path

import pytest
from data_fixtures import write_tar

from datamodules import shards
from datamodules.shards import (
    ShardSet,
    find_shards,
    index_path,
    index_shard,
    load_index,
    open_shards,
    read_manifest,
    split_name,
    write_manifest,
)

PAIR = [("a.jpg", b"image a"), ("a.txt", b"one"), ("d/b.png", b"image b"), ("d/b.mask.png", b"mask b")]


def test_split_name_ends_the_key_at_the_first_dot_of_the_base_name() -> None:
    assert split_name("v1.0/a.mask.PNG") == ("v1.0/a", "mask.png")


def test_index_points_at_the_bytes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", PAIR)
    index = index_shard(path)
    assert index.keys == ["a", "d/b"]
    data = path.read_bytes()
    found = [{f: data[at : at + size] for f, (at, size) in fields.items()} for fields in index.fields]
    assert found == [{"jpg": b"image a", "txt": b"one"}, {"png": b"image b", "mask.png": b"mask b"}]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b""), ("b.jpg", b""), ("a.txt", b"")], "member 'a.txt': key 'a' is duplicate or not in one piece"),
        ([("a.jpg", b""), ("a.jpg", b"")], "member 'a.jpg': key 'a' is duplicate"),
        ([("a b.jpg", b"")], "member 'a b.jpg': expected a name of the characters"),
        ([("a.jpg", b""), ("a.pickle", b"")], "member 'a.pickle': expected one of the suffixes"),
        ([("a.jpg", b""), ("a.pth", b"")], "expected one of the suffixes jpg, jpeg, png, webp"),
        ([("d/.jpg", b"")], "member 'd/.jpg': expected KEY.FIELD"),
        ([("a.txt", b"")], "sample 'a': expected one image"),
        ([("a.jpg", b""), ("a.png", b"")], "sample 'a': expected one image .*'jpg', 'png'"),
    ],
)
def test_refused_members_are_named(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    path = write_tar(tmp_path / "s.tar", members)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        index_shard(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])
def test_only_regular_files(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("a.jpg")
    member.type = kind
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    (tmp_path / "s.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(ValueError, match=r"member 'a\.jpg': expected a regular file"):
        index_shard(tmp_path / "s.tar")


def test_oversize_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_MEMBER_BYTES", 4)
    with pytest.raises(ValueError, match=r"member 'a\.jpg': expected at most 4 bytes, got 7"):
        index_shard(write_tar(tmp_path / "s.tar", PAIR))


def test_compressed_tar(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "s.tar", PAIR)
    plain.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(ValueError, match="expected an uncompressed tar"):
        index_shard(plain)


@pytest.mark.parametrize("damage", ["header", "cut data", "cut at a member", "appended"])
def test_a_tar_that_ends_early_is_refused(tmp_path: Path, damage: str) -> None:
    path = write_tar(tmp_path / "s.tar", PAIR)
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[1024 : 1024 + 200] = b"x" * 200
    path.write_bytes(
        {"cut data": data[:700], "cut at a member": data[:2048], "appended": data + data}.get(damage, data)
    )
    with pytest.raises(ValueError, match=r"s\.tar: (the tar is corrupt, cut short|expected an uncompressed tar)"):
        index_shard(path)


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


def test_a_shard_that_shrank_since_is_an_error(tmp_path: Path) -> None:
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
    file.unlink()
    assert load_index(shard).keys == ["a", "d/b"]


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2, "shards": []}', '{"version": 1}'])
def test_unreadable_manifest_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: not a valid file of this kind"):
        read_manifest(tmp_path)


def test_specs(tmp_path: Path) -> None:
    for number in range(4):
        write_tar(tmp_path / f"t-{number:02d}.tar", [(f"{number}.jpg", b"")])

    def names(spec: str | list[str]) -> list[str]:
        return [Path(shard.path).stem for shard in find_shards(spec)]

    assert names(str(tmp_path)) == names(f"{tmp_path}/t-*.tar") == names(f"{tmp_path}/t-{{00..03}}.tar")
    assert names(str(tmp_path / "t-01.tar")) == ["t-01"]
    assert names([f"{tmp_path}/t-{{03,00}}.tar", f"{tmp_path}/t-02.tar"]) == ["t-03", "t-00", "t-02"]


def test_embedded_specs_lie_beside_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    write_tar(tmp_path / "train" / "0.tar", PAIR)
    monkeypatch.setattr(shards, "_EMBEDDED", tmp_path)
    assert len(open_shards("embedded:train")) == 2
    with pytest.raises(ValueError, match=r"shards .*val'?: nothing found at"):
        find_shards("embedded:val")


@pytest.mark.parametrize("spec", ["pipe:cat x.tar", "https://host/x.tar", "s3://b/x.tar", "hf://x"])
def test_remote_and_pipe_specs_are_refused(spec: str) -> None:
    with pytest.raises(ValueError, match=f"shards '{spec}': expected a local folder, tar, brace pattern or glob"):
        find_shards(spec)


def test_nothing_found_says_where(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing found at \['.*no-1\.tar'\]"):
        find_shards(f"{tmp_path}/no-{{1..1}}.tar")
    with pytest.raises(ValueError, match=rf"no manifest\.json and no \*\.tar in {tmp_path}"):
        find_shards(str(tmp_path))


def test_no_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [])
    with pytest.raises(ValueError, match=r"expected at least one sample, got none in .*0\.tar"):
        open_shards(str(tmp_path))
