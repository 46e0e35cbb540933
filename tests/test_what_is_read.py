"""Every row of the tables in datamodules/README.md, and of those on images in READING.md, done."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data_fixtures import encode, exif_turned, photo
from icc_profiles import cmyk, display_p3, grey, srgb
from PIL import Image, PngImagePlugin
from test_limits import many_scans, small_png

from datamodules.account import Account, RefusedError
from datamodules.decode import conversion
from datamodules.decode.annotations import parse_annotations
from datamodules.decode.conversion import ONE_WAY, filled, read_given, write_png
from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.make_shards import make_shards
from datamodules.shards.shard_set import RawSample
from datamodules.shards.shard_specs import open_shards
from datamodules.writing.source_lists import Columns, find_sources

FOLDER = Path(__file__).parents[1] / "datamodules"
TEXT = (FOLDER / "README.md").read_text() + (FOLDER / "READING.md").read_text()
BLACK = encode(Image.new("L", (48, 40)))


def rows(title: str) -> list[tuple[str, str]]:
    """The rows of the table in a section: first cell, second cell."""
    section = re.split(r"\n#+ ", re.split(rf"\n#+ {re.escape(title)}\n", TEXT)[1])[0]
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
    texts = {"txt": b"text", "instruction.txt": b"text", "cls": b"3", "json": b'{"caption": "text"}'}
    content = texts.get(quoted(member), BLACK)
    content = {
        "a.mask.bmp": encode(Image.open(io.BytesIO(BLACK)), "BMP"),
        "a.mask.jpg": encode(Image.open(io.BytesIO(BLACK)), "JPEG"),
        "a.target.jpg": picture("a.jpg"),
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
    "a target of another size": ("a.target.png", lambda: encode(photo(0, 40, 40))),
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


GREEN = (90, 200, 60)
PLAIN = Image.new("RGB", (8, 8), GREEN)
CLEAR = Image.new("RGBA", (8, 8), (*GREEN, 0))
FIFTY = Image.fromarray(np.full((8, 8), 50 * 257, np.uint16))
DEEP = cv2.imencode(".png", np.full((8, 8, 3), 50 * 256 + 255, np.uint16))[1].tobytes()
INKS = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
TURNED = photo(1, 8, 8)


def png_with(**chunks: bytes) -> bytes:
    words = PngImagePlugin.PngInfo()
    for name, content in chunks.items():
        words.add(name.encode(), content)
    return encode(PLAIN, pnginfo=words)


def adobe_by_exif() -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF  # ColorSpace: uncalibrated
    exif.get_ifd(0x8769).setdefault(0xA005, {1: "R03"})
    return encode(PLAIN, exif=exif)


GAMMA = {"gAMA": (100000).to_bytes(4), "cHRM": bytes(32), "cICP": b"\x0c\x0d\0\1"}
IMAGES: dict[str, dict[bytes, Any]] = {  # the row's beginning -> files, and their colour by hand, or their pixels
    "JPEG, PNG, WEBP of 1 to 8 bits": {
        **{encode(Image.new(mode, (8, 8), 1)): 255 if mode == "1" else 1 for mode in ("1", "L")},
        encode(PLAIN.quantize(2)): GREEN,
        encode(PLAIN): GREEN,
        encode(PLAIN, "WEBP", lossless=True): GREEN,
        **{encode(CLEAR, kind, **more): 255 for kind, more in (("PNG", {}), ("WEBP", {"lossless": True}))},
        encode(Image.new("LA", (8, 8), (7, 0))): 255,
        encode(Image.new("L", (8, 8), 9), "JPEG"): 9,
        encode(INKS, "JPEG", quality=100): (0, 255, 255),
    },
    "16-bit grey": {encode(FIFTY): 50},
    "16-bit colour": {DEEP: 50},
    "an RGB, grey or CMYK profile": {
        encode(PLAIN, icc_profile=display_p3()): (0, 203, 7),
        encode(Image.new("L", (8, 8), 50), icc_profile=grey(2.2)): 46,
        # Lab (50, 60, 30) -> XYZ (.315, .184, .061) of D50 -> light of sRGB (.661, .046, .066)
        encode(INKS, "JPEG", quality=100, icc_profile=cmyk()): (212, 61, 73),
    },
    "an sRGB profile": {encode(PLAIN, icc_profile=srgb()): GREEN},
    "a profile that cannot be read": {encode(PLAIN, icc_profile=data): GREEN for data in (b"none", grey(2.2))},
    "PNG's gAMA, cHRM and cICP": {png_with(**GAMMA): GREEN, adobe_by_exif(): GREEN},
    "EXIF rotation": {encode(TURNED, exif=exif_turned(6)): np.asarray(TURNED.transpose(Image.Transpose.ROTATE_270))},
    "animated": {encode(PLAIN, save_all=True, append_images=[CLEAR.convert("RGB"), TURNED]): GREEN},
    "more than 32 scans": {many_scans(8, 8, 40): "scans", small_png(before=2000): "parts", bytes(8): "identify"},
}
COUNTED = {"a profile that cannot be read": "bad_profile", "animated": "animated"}


@pytest.mark.parametrize("row", [row for row, _ in rows("Images")])
def test_images(row: str) -> None:
    (begin,) = [begin for begin in IMAGES if row.startswith(begin)]
    for data, wanted in IMAGES[begin].items():
        field = "jpg" if data[:2] == b"\xff\xd8" else "png"
        decoder, raw = SampleDecoder(image_size=(8, 8), seed=0, augment=False), RawSample("s", "k", {field: data}, 0)
        if isinstance(wanted, str):
            with pytest.raises(ValueError, match=wanted):
                decoder(raw)
            continue
        sample = decoder(raw)
        assert np.abs(sample["image"].permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 2
        assert [kind for kind, _ in sample.get("notes", [])] == ([COUNTED[begin]] if begin in COUNTED else [])


def with_alpha(mode: str) -> Image.Image:
    image = Image.new("RGB", (8, 8), GREEN).convert(mode)
    image.putalpha(9)
    return image


GIVEN: dict[str, dict[bytes, tuple[str, Any]]] = {  # files -> mode and fill of (90, 200, 60), in grey 151
    "grey or RGB of 8 bits": {encode(PLAIN): ("RGB", GREEN), encode(PLAIN.convert("L")): ("L", 151)},
    "1 bit": {encode(PLAIN.convert("1")): ("L", 151)},
    "palette": {encode(PLAIN.quantize(2)): ("RGB", GREEN)},
    "with transparency, in any of these": {
        encode(with_alpha("RGB")): ("RGBA", (*GREEN, 255)),
        encode(with_alpha("L")): ("LA", (151, 255)),
        encode(PLAIN.quantize(2), transparency=b"\x09\x09"): ("RGBA", (*GREEN, 255)),
    },
    "16-bit grey": {encode(FIFTY): ("I;16", 151 * 257)},
    "16-bit colour": {DEEP: ("RGB", GREEN)},
    "a colour profile": {
        encode(PLAIN, icc_profile=display_p3()): ("RGB", (120, 198, 82)),
        png_with(**GAMMA): ("RGB", GREEN),
    },
    "a profile from which there is no way back": {
        encode(INKS, "JPEG", icc_profile=cmyk()): ("RGB", GREEN),
        encode(INKS, "JPEG"): ("RGB", GREEN),
        encode(PLAIN, icc_profile=cmyk(3)): ("RGB", GREEN),
    },
    "EXIF and texts": {encode(PLAIN, exif=exif_turned(6)): ("RGB", GREEN), png_with(tEXt=b"a\0b"): ("RGB", GREEN)},
}
SAID = {
    "16-bit colour": (conversion.DEEP,),
    "a profile from which there is no way back": (conversion.CMYK, ONE_WAY),
}


def test_every_case_is_in_the_tables() -> None:
    assert len(IMAGES) == len(rows("Images"))
    assert len(GIVEN) == len(rows("What `predict` gives back"))


@pytest.mark.parametrize("row", [row for row, _ in rows("What `predict` gives back")])
def test_given_back(row: str, tmp_path: Path) -> None:
    (begin,) = [begin for begin in GIVEN if row.startswith(begin)]
    hole = np.arange(64).reshape(8, 8) < 8
    for data, (mode, colour) in GIVEN[begin].items():
        (tmp_path / "a.png").write_bytes(data)
        given = read_given(tmp_path / "a.png", 999)
        assert len(given.notes) == (begin in SAID)
        assert set(given.notes) <= set(SAID.get(begin, ()))
        with open(tmp_path / "b.png", "wb") as file:
            write_png(file, filled(given, np.full((8, 8, 3), GREEN, np.uint8), hole), given, "predict")
        before, after = Image.open(io.BytesIO(data)), Image.open(tmp_path / "b.png")
        assert after.mode == mode
        assert np.abs(np.subtract(after.getpixel((3, 0)), colour)).max() <= 1
        kept = {"icc_profile", "gamma", "chromaticity"} & before.info.keys() - (
            {"icc_profile"} if begin in SAID else set()
        )
        assert {name: after.info.get(name) for name in kept} == {name: before.info[name] for name in kept}
        assert not {"exif", "a"} & after.info.keys()
        if begin not in SAID:
            same = np.asarray(before if before.mode == mode else before.convert(mode))
            assert (np.asarray(after)[1:] == same[1:]).all()
