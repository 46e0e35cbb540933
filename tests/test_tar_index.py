"""The index finds every byte, and refuses every tar that could lose or mix samples."""

import gzip
import hashlib
import io
import re
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from data_fixtures import write_tar

from datamodules.shards import tar_index
from datamodules.shards.tar_index import index_shard, scan_tar, split_name
from datamodules.shards.tar_members import SequentialFile

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
        ([("a.jpg", b""), ("a.pickle", b"")], "member 'a.pickle': expected one of the suffixes"),
        ([("a.jpg", b""), ("a.pth", b"")], "expected one of the suffixes jpg, jpeg, png, webp"),
        ([("a\n.jpg", b"")], r"member 'a\\n.jpg': expected a name of at most 4096 characters, without control"),
        ([("a" * 5000 + ".jpg", b"")], "member 'a{200}': expected a name of at most 4096 characters"),
        ([("a.txt", b""), ("b.npy", b"")], "expected one image .* at least, got none, .* 1 not used, ending in .npy"),
        ([("../a.jpg", b"")], "member '../a.jpg': expected a key that stays in its folder"),
        ([("d/../../a.jpg", b"")], "expected a key that stays in its folder, got one with '..' or a leading '/'"),
        ([("/a.jpg", b"")], "member '/a.jpg': expected a key that stays in its folder"),
        ([("a.jpg", b""), ("a.png", b"")], "sample 'a': expected one image .*'jpg', 'png'"),
    ],
)
def test_refused_members_are_named(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    path = write_tar(tmp_path / "s.tar", members)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        index_shard(path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE])
def test_only_regular_files(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("a.jpg")
    member.type = kind
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    (tmp_path / "s.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(ValueError, match=r"member 'a\.jpg': expected a regular file"):
        index_shard(tmp_path / "s.tar")


def test_oversize_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "MAX_MEMBER_BYTES", 4)
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


def test_masks_and_label_maps_are_not_the_image(tmp_path: Path) -> None:
    names = ["jpg", "mask.png", "mask.webp", "mask.jpg", "mask.jpeg", "label.png", "seg.png", "txt", "json", "cls"]
    index = index_shard(write_tar(tmp_path / "s.tar", [(f"a..b/k.{name}", b"") for name in names]))
    assert index.keys == ["a..b/k"]
    assert list(index.fields[0]) == names


@pytest.mark.parametrize("damage", [None, "header", "cut data", "cut at a member", "appended"])
def test_one_pass_over_a_stream_finds_the_same(tmp_path: Path, damage: str | None) -> None:
    """A stream that cannot seek: index, sizes, bytes and sha256, or the same refusal."""
    members = [*PAIR, ("e.webp", b"e" * 512), ("f" * 120 + ".jpg", b""), ("g.jpg", b"g" * (3 << 20))]
    path = write_tar(tmp_path / "s.tar", members)
    data = path.read_bytes()
    damaged = {
        "header": data[:1024] + b"x" * 200 + data[1224:],
        "cut data": data[:700],
        "cut at a member": data[:2048],
        "appended": data + data,
    }.get(damage or "", data)
    path.write_bytes(damaged)
    pipe = io.BytesIO(damaged)
    stream = SimpleNamespace(read=lambda size: pipe.read(min(size, 1000)))
    if damage is not None:
        with pytest.raises(ValueError, match=r"s\.tar: ") as here:
            index_shard(path)
        with pytest.raises(ValueError, match=f"^{re.escape(str(here.value))}$"):
            scan_tar(stream, str(path))
        return
    found = scan_tar(stream, str(path), measure=lambda data: (len(data), sum(data[:2])))
    assert (found.bytes, found.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert found.index[:2] == index_shard(path)[:2]
    assert found.index.sizes == [(7, 214), (7, 214), (512, 202), (0, 0), (3 << 20, 206)]


def test_a_stream_is_read_onwards_only() -> None:
    file = SequentialFile(io.BytesIO(bytes(range(100))))
    assert file.read(10) == bytes(range(10))
    assert (file.seek(10), file.seek(90), file.read(50), file.tell()) == (10, 90, bytes(range(90, 100)), 100)
    assert file.sha256 == hashlib.sha256(bytes(range(100))).hexdigest()
    with pytest.raises(ValueError, match="expected to go on from byte 100, got a seek to 3"):
        file.seek(3)
