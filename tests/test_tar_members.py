"""Tars as they are in the wild are read as webdataset reads them; what could lose samples or do harm is refused."""

from __future__ import annotations

import io
import random
import re
import tarfile
from pathlib import Path

import pytest
from data_fixtures import encode, photo, write_tar
from webdataset.tariterators import group_by_keys, tar_file_expander

from datamodules.shards.tar_index import ShardIndex, index_shard, scan_tar
from datamodules.shards.tar_members import read_members

JPEG, PNG = encode(photo(1), "JPEG"), encode(photo(2))
MEMBERS = [(f"{n}.{suffix}", data) for n in range(9) for suffix, data in (("jpg", JPEG), ("txt", b"a photo"))]


def samples_of(path: Path, index: ShardIndex) -> dict[str, dict[str, bytes]]:
    data = path.read_bytes()
    rows = zip(index.keys, index.fields, strict=True)
    return {key: {name: data[at : at + size] for name, (at, size) in fields.items()} for key, fields in rows}


def by_webdataset(path: Path) -> dict[str, dict[str, bytes]]:
    files = tar_file_expander([{"url": "", "stream": io.BytesIO(path.read_bytes())}])
    samples = {sample["__key__"]: sample for sample in group_by_keys(files)}
    return {key: {n: v for n, v in sample.items() if not n.startswith("__")} for key, sample in samples.items()}


def tar_of(path: Path, members: list[tuple[str, bytes] | str], kind: int, encoding: str = "utf-8", **pax: str) -> Path:
    """A tar of files and, for names without content, folders, each with these pax records."""
    with tarfile.open(path, "w", format=kind, encoding=encoding) as tar:
        for each in members:
            member = tarfile.TarInfo(each if isinstance(each, str) else each[0])
            member.type = tarfile.DIRTYPE if isinstance(each, str) else tarfile.REGTYPE
            member.pax_headers = pax
            member.size = 0 if isinstance(each, str) else len(each[1])
            tar.addfile(member, None if isinstance(each, str) else io.BytesIO(each[1]))
    return path


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_folders_tar_is_read_as_webdataset_reads_it(tmp_path: Path, kind: int) -> None:
    """As by `tar --sort=name -cf x.tar folder`, with a name of 118 bytes and letters beyond ASCII."""
    long = f"folder/{'sub' * 30}/{'x' * 20}.JPG"
    pairs = [("folder/a b (1).jpg", JPEG), ("folder/a b (1).mask.png", PNG), ("folder/a b (1).txt", b"one")]
    pairs += [(long, JPEG), ("folder/é/日本.png", PNG), ("folder/é/日本.json", b"{}"), ("v1.0/b.webp", b"w")]
    path = tar_of(tmp_path / "x.tar", ["folder", *pairs[:3], "folder/é", *pairs[3:]], kind)
    index = index_shard(path)
    assert samples_of(path, index) == by_webdataset(path)
    assert index.keys == ["folder/a b (1)", long[:-4], "folder/é/日本", "v1.0/b"]
    assert index.aside == {"folders": (2, ["folder/", "folder/é/"])}
    with path.open("rb") as file:
        assert scan_tar(file, str(path)).index == index


def test_a_macs_tar_loses_nothing(tmp_path: Path) -> None:
    """As by bsdtar: AppleDouble files before each file, extended attributes in pax headers."""
    names = ["__MACOSX/._a.jpg", "d/.DS_Store", "d/._a.jpg", "d/a.jpg", "d/._a.txt", "d/a.txt", "d/Thumbs.db"]
    names += ["d/.ipynb_checkpoints/b.jpg", "./.thumbnails/b.jpg", "#recycle/b.jpg"]  # as in folders that are packed
    members = [(name, JPEG if name == "d/a.jpg" else b"x" * 600) for name in names]
    attributes = {"LIBARCHIVE.xattr.com.apple.quarantine": "MDA4MQ==\n\nx", "SCHILY.dev": "7", "comment": "é"}
    path = tar_of(tmp_path / "x.tar", ["./._d", "d", *members], tarfile.PAX_FORMAT, **attributes)
    index = index_shard(path)
    assert samples_of(path, index) == {"d/a": {"jpg": JPEG, "txt": b"x" * 600}}
    shown = ["__MACOSX/._a.jpg", "d/.DS_Store", "d/._a.jpg"]
    assert index.aside == {"folders": (2, ["./._d/", "d/"]), "hidden or of the system": (8, shown)}


def test_what_is_no_sample_is_counted_with_its_first_names(tmp_path: Path) -> None:
    aside = {
        "without an image of their name": ["only.txt", "only.mask.png"],
        "not used, ending in .npy": ["a.npy"],
        "not used, ending in .depth.png": ["a.depth.png"],
        "not used, without an ending": ["README"],
        "with a dot in the name, where the key ends": ["Shot at 1.23.45 PM.jpg", "v2.0.jpg"],
        "named __like_this__": ["__index__", "__meta__/x.jpg"],
        "ignored, as asked for": ["a.emb"],
    }
    members = [("a.jpg", JPEG), *((name, b"") for names in aside.values() for name in names)]
    path = write_tar(tmp_path / "x.tar", members)
    with path.open("rb") as file:
        index = scan_tar(file, "x.tar", ignore=["emb"]).index
    assert index.aside == {why: (len(names), names) for why, names in aside.items()}
    assert index.keys == ["a"]
    many = write_tar(tmp_path / "y.tar", [("a.jpg", JPEG), *((f"b.e{n}", b"") for n in range(1000))])
    assert len(index_shard(many).aside or ()) < 60


def test_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", [("caf\xe9.jpg", JPEG), ("caf\xe9.txt", b"t")], tarfile.GNU_FORMAT, "latin-1")
    assert samples_of(path, index_shard(path)) == {"caf%E9": {"jpg": JPEG, "txt": b"t"}}
    assert list(by_webdataset(path).values()) == [{"jpg": JPEG, "txt": b"t"}]


@pytest.mark.parametrize("share", [0.03, 0.25, 0.5, 0.75, 0.9])
def test_a_reserved_download_is_refused_wherever_it_ends(tmp_path: Path, share: float) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{n}.jpg", JPEG * 9) for n in range(40)])
    data = path.read_bytes()
    for cut in range(int(len(data) * share), int(len(data) * share) + 4096, 509):
        path.write_bytes(data[:cut] + bytes(len(data) - cut))
        with pytest.raises(ValueError, match=rf"^(expected .* got none in )?{re.escape(str(path))}: .*download"):
            index_shard(path)


def test_a_small_one_that_ends_within_an_image_is_refused_too(tmp_path: Path) -> None:
    """One record of zeros is what tars end with; the image before them is not whole."""
    path = write_tar(tmp_path / "x.tar", [("a.jpg", JPEG), ("b.png", PNG), ("c.jpg", JPEG)])
    data = path.read_bytes()
    for name, at in (("a.jpg", 600), ("b.png", data.index(PNG) + 100)):
        path.write_bytes(data[:at] + bytes(len(data) - at))
        with pytest.raises(ValueError, match=rf"member '{name}': expected an image, got one that ends in zeros, as in"):
            index_shard(path)
    padded = write_tar(tmp_path / "y.tar", [("a.jpg", JPEG + bytes(300)), ("b.webp", b"RIFF" + bytes(300))])
    assert index_shard(padded).keys == ["a", "b"]  # some cameras fill up their files


@pytest.mark.parametrize("size", [512, 1024, 10_240, 1 << 20])
def test_zeros_alone_are_no_empty_set(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf"got none in {re.escape(str(path))}: all of its {size} bytes are zeros"):
        index_shard(path)


@pytest.mark.parametrize("end", [512, 1024, "10240", "512 * 3", "512 * 20", "16384", "65536"])
def test_ends_of_other_writers_are_taken(tmp_path: Path, end: int | str) -> None:
    """One block, two, or two and more up to a whole record, as `tar -b` sets it."""
    path = write_tar(tmp_path / "x.tar", MEMBERS)
    body = path.read_bytes().rstrip(b"\0")
    body += bytes(-len(body) % 512)
    record = eval(end) if isinstance(end, str) else 0
    zeros = 1024 + -(len(body) + 1024) % record if isinstance(end, str) else end
    path.write_bytes(body + bytes(zeros))
    assert len(index_shard(path).keys) == 9
    path.write_bytes(body + bytes(zeros + (10_240 if record else 0) + 7))
    with pytest.raises(ValueError, match="expected zeros up to a whole record, of 10240 bytes say, got"):
        index_shard(path)


def header(name: str = "a.jpg", kind: bytes = b"0", size: int = 0, **other: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(**records: object) -> bytes:
    text = b"".join(tarfile.TarInfo._create_pax_generic_header({name: str(value)}, b"x", "utf-8")[512:].rstrip(b"\0")
                    for name, value in records.items())  # fmt: skip
    return header("x", b"x", len(text)) + text + bytes(-len(text) % 512)


def with_size(block: bytes, size: int) -> bytes:
    """A header with a size in base 256, negative or huge."""
    block = block[:124] + b"\xff" + size.to_bytes(11, "big", signed=True) + block[136:]
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


LONG = header("././@LongLink", b"L", 5) + b"a.jpg" + bytes(507)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (pax(size=-1) + header(), r"a member of b'-1' bytes"),
        (pax(size="1e3") + header(), r"a member of b'1e3' bytes"),
        (pax(size="9" * 18) + header(), "expected at most"),
        (pax(size="9" * 30) + header(), "a member of"),
        (with_size(header(), -600), "a member of -600 bytes"),
        (with_size(header("x", b"x"), -600), "long names and pax headers before one member that are not"),
        (with_size(header("x", b"L"), 1 << 60), "long names and pax headers before one member that are not"),
        (LONG * 20_000 + header(), "long names and pax headers before one member that are not at most 16"),
        (pax(path="b.jpg") * 20_000 + header(), "long names and pax headers before one member that are not"),
        (header("x", b"x", 512) + b"7" * 512 + header(), "a pax header with b'777777"),
        (header("x", b"x", 512) + b"9999 path=a\n" + bytes(500) + header(), "a pax header with b'9999 path=a"),
        (header("x", b"g", 12) + b"12 path=ab\n\n" + bytes(500) + header(), "a global pax header with one of path"),
        (pax(**{"GNU.sparse.major": 1}) + header(), "expected a regular file, got a sparse file"),
        (header(kind=b"S"), "expected a regular file, got a sparse file"),
        (header(kind=b"M"), "expected a regular file, got tar type b'M'"),
        (pax(path="../../a.jpg") + header(), "expected a key that stays in its folder"),
        (LONG, "an end after a header that belongs to a member"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:30],
)  # fmt: skip
@pytest.mark.parametrize("first", [b"", header("0.jpg")], ids=["first", "second"])
def test_headers_that_lie_are_refused_by_name(tmp_path: Path, head: bytes, message: str, first: bytes) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(first + head + bytes(1024))
    for read in (index_shard, lambda path: scan_tar(io.BytesIO(path.read_bytes()), str(path))):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{re.escape(message)}"):
            read(path)


def test_a_global_comment_and_a_label_are_passed(tmp_path: Path) -> None:
    """As `git archive` and `tar --label` write them."""
    comment = header("pax_global_header", b"g", 14) + b"14 comment=ab\n" + bytes(498)
    (tmp_path / "s.tar").write_bytes(comment + header("a label", b"V") + header() + bytes(1024))
    assert index_shard(tmp_path / "s.tar").keys == ["a"]


def mutants(data: bytes, count: int, seed: int) -> list[bytes]:
    """Tars with a few wrong bytes in their headers, checksums right again."""
    draw, made = random.Random(seed), []
    heads = [at for at in range(0, len(data) - 512, 512) if data[at + 257 : at + 262] == b"ustar"]
    places = [0, 100, 124, 130, 156, 157, 257, 345, *range(0, 500, 37)]
    pieces = [b"\0", b"\xff", b"-", b"9" * 11, b"\x80" + b"\xff" * 10, b"../", b"/", b"L", b"x", b"g", b"S", b"7" * 100]
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            start, piece = draw.choice(heads), draw.choice(pieces)
            at = start + draw.choice(places)
            changed[at : at + len(piece)] = piece
            block = bytes(changed[start : start + 148]) + b" " * 8 + bytes(changed[start + 156 : start + 512])
            changed[start + 148 : start + 156] = b"%06o\0 " % sum(block)
            if draw.random() < 0.3:
                at = draw.randrange(len(changed))
                changed[at : at + draw.randint(1, 700)] = draw.choice([b"", bytes(512)])
        made.append(bytes(changed))
    return made


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_mutants_give_an_index_or_a_named_error(tmp_path: Path, kind: int) -> None:
    """What is taken is inside the file, and what tarfile finds there is not lost."""
    members: list[tuple[str, bytes] | str] = ["d", ("d/a.jpg", JPEG), ("d/a.txt", b"t"), ("é" * 60 + ".jpg", JPEG)]
    data = tar_of(tmp_path / "s.tar", [*members, ("b.png", PNG)], kind, comment="c").read_bytes()
    taken = 0
    for mutant in mutants(data, 700, seed=kind):
        try:
            index = scan_tar(io.BytesIO(mutant), "s.tar").index
        except ValueError as error:
            assert "s.tar" in str(error)  # noqa: PT017, some mutants are valid
            continue
        taken += 1
        for fields in index.fields:
            assert all(at >= 512 and 0 <= size <= len(mutant) - at for at, size in fields.values())
        with tarfile.open(fileobj=io.BytesIO(mutant)) as tar:
            assert len(list(read_members(io.BytesIO(mutant), "s.tar"))) >= len(tar.getmembers())
    assert taken > 20
