"""Every row of the tables in datamodules/README.md, done."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import encode, photo
from PIL import Image

from datamodules.account import Account, RefusedError
from datamodules.decode import conversion
from datamodules.decode.annotations import parse_annotations
from datamodules.make_shards import make_shards
from datamodules.shards.shard_specs import open_shards
from datamodules.writing.source_lists import Columns, find_sources

TEXT = (Path(__file__).parents[1] / "datamodules" / "README.md").read_text()
BLACK = encode(Image.new("L", (48, 40)))


def rows(title: str) -> list[tuple[str, str]]:
    """The rows of the table in a section: first cell, second cell."""
    section = TEXT.partition(f"\n### {title}\n")[2].partition("\n### ")[0]
    cells = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert len(cells) > 3, title
    return [(first.strip(), second.strip()) for first, second in cells[1:]]


def quoted(cell: str) -> str:
    """What stands first between backticks."""
    return cell.split("`")[1]


def picture(name: str) -> bytes:
    """A photo as a file of that name has it."""
    suffix = conversion.suffix_of(name)
    kinds = {
        "jpe": "JPEG",
        "jfif": "JPEG",
        "jpg": "JPEG",
        "jpeg": "JPEG",
        "tif": "TIFF",
        "jp2": "JPEG2000",
        "heic": "HEIF",
    }
    return encode(photo(1) if ".seg" not in name else Image.new("L", (48, 40)), kinds.get(suffix, suffix.upper()))


def write(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def packed(folder: Path, **options: object) -> dict[str, bytes]:
    out = folder.with_name(folder.name + ".out")
    make_shards(folder, out, **options)  # type: ignore[arg-type]
    shards = open_shards(str(out))
    return shards.read(0).fields


@pytest.mark.parametrize(("file", "member"), rows("Beside a photo"))
def test_beside_a_photo(file: str, member: str, tmp_path: Path) -> None:
    folder, name = tmp_path / "in", quoted(file)
    content = {"txt": b"text", "cls": b"3", "json": b'{"caption": "text"}'}.get(quoted(member), BLACK)
    content = {
        "a.mask.bmp": encode(Image.open(io.BytesIO(BLACK)), "BMP"),
        "a.mask.jpg": encode(Image.open(io.BytesIO(BLACK)), "JPEG"),
        "a.seg.tif": encode(Image.open(io.BytesIO(BLACK)), "TIFF"),
        "metadata.jsonl": b'{"file_name": "a.jpg", "text": "text"}',
        "metadata.csv": b"file_name,text\na.jpg,text\n",
    }.get(name, content)
    write(folder, "a.jpg", picture("a.jpg"))
    write(folder, name, content)
    options = [*re.findall("--masks '(.+?)'", member), *([str(folder / "masks")] if "FOLDER" in member else [])]
    for number, masks in enumerate(options or [None]):
        (tmp_path / str(number)).symlink_to(folder)
        assert set(packed(tmp_path / str(number), masks=masks)) == {"jpg", quoted(member)}


@pytest.mark.parametrize(("file", "member"), rows("Pictures"))
def test_pictures(file: str, member: str, tmp_path: Path) -> None:
    name = quoted(file)
    if name.endswith("heic"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    write(tmp_path / "in", name, picture(name))
    fields = packed(tmp_path / "in")
    assert list(fields) == [quoted(member)]
    assert (fields[quoted(member)] == picture(name)) == ("byte for byte" in member)
    if "byte for byte" not in member and not name.endswith(("gif", "avif", "heic")):
        assert np.array_equal(Image.open(io.BytesIO(fields["png"])), photo(1))


def test_columns() -> None:
    told = {purpose: tuple(re.findall("`(.+?)`", names)) for purpose, names in rows("Tables")}
    assert told == {purpose: names for purpose, names in Columns._field_defaults.items() if purpose != "json"}


def test_texts(tmp_path: Path) -> None:
    word = "Größe"
    given = {
        "UTF-8": word.encode(),
        "UTF-8 with a byte-order mark": word.encode("utf-8-sig"),
        "UTF-16 with a byte-order mark": word.encode("utf-16"),
        "NULs at the end": word.encode() + b"\0\0",
        "Latin-1": word.encode("latin-1"),
    }
    assert [row for row, _ in rows("Texts")] == list(given)
    for number, (kind, data) in enumerate(given.items()):
        folder = tmp_path / str(number)
        write(folder, "a.png", picture("a.png"))
        write(folder, "a.txt", data)
        fields = packed(folder, caption_encoding="latin-1" if kind == "Latin-1" else "utf-8")
        assert fields["txt"] == word.encode()


@pytest.mark.parametrize(("json", "objects"), rows("Annotations in a json"))
def test_annotations(json: str, objects: str, tmp_path: Path) -> None:
    found = parse_annotations(quoted(json).encode())
    assert len(found.objects) == int(objects.partition(":")[0])
    assert bool(found.left_out) == ("left out" in objects)
    write(tmp_path / "in", "a.png", picture("a.png"))
    write(tmp_path / "in", "a.json", quoted(json).encode())
    assert packed(tmp_path / "in")["json"] == quoted(json).encode()


REFUSED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a caption that is not in the encoding": ("a.txt", lambda: b"\xff"),
    "UTF-16 without a byte-order mark": ("a.txt", lambda: "text".encode("utf-16-le")),
    "a class that is no number": ("a.cls", lambda: b"cat"),
    "a list in a json": ("a.json", lambda: b"[]"),
    'annotations with a width of `"640"`': (
        "a.json",
        lambda: b'{"segmentation": [[0, 0, 9, 9, 5, 0]], "width": "640"}',
    ),
    "run lengths that do not fit": ("a.json", lambda: b'{"segmentation": {"counts": [3], "size": [2, 2]}}'),
    "a mask of another shape": ("a.mask.png", lambda: encode(Image.new("L", (40, 40)))),
    "a label map in colours": ("a.label.png", lambda: picture("a.png")),
    "what is no picture": ("a.jpg", lambda: b"text"),
    "half a picture": ("a.jpg", lambda: picture("a.jpg")[:-200]),
    "a picture of floating-point numbers": ("a.tif", lambda: encode(Image.new("F", (4, 4)), "TIFF")),
    "too many pixels": ("a.png", lambda: picture("a.png")),
    "HEIC without its package": ("a.jpg", lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
}


@pytest.mark.parametrize(("file", "message"), rows("Refused, naming the file"))
def test_refused(file: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, data = REFUSED[file]
    monkeypatch.setattr(conversion, "_decoders", lambda: frozenset({"TIFF", "GIF", "BMP"}))
    write(tmp_path / "in", "a.jpg", picture("a.jpg"))
    write(tmp_path / "in", name, data())
    with pytest.raises(RefusedError) as refused:
        packed(tmp_path / "in", max_pixels=50 if file == "too many pixels" else 10_000)
    assert any(
        reason.startswith(f"{tmp_path}/in/{name}: ") and quoted(message) in reason
        for reason in refused.value.account.refused
    )


def test_every_refusal_is_in_the_table() -> None:
    assert [row for row, _ in rows("Refused, naming the file")] == list(REFUSED)


@pytest.mark.parametrize(("file", "why"), rows("Left aside, counted"))
def test_left_aside(file: str, why: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", picture("a.jpg"))
    if file.startswith("a link"):
        (tmp_path / "up").symlink_to(tmp_path)
    elif file.startswith("a row"):
        write(tmp_path, "metadata.csv", b"file_name,text\ngone.jpg,text\n")
    else:
        for name in re.findall("`(.+?)`", file):
            write(tmp_path, name, BLACK)
    account = Account()
    assert [source.key for source in find_sources(tmp_path, account=account)] == ["a"]
    ((kind, (count, _)),) = account.aside.items()
    assert (kind.startswith(quoted(why)), count) == (True, 1)
