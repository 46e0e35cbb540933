"""Mask files: what each kind is read as, or its refusal; the table in READING.md says the same."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fixtures import encode, exif_turned, photo
from icc_profiles import display_p3
from PIL import Image

from datamodules.decode.mask_files import mask_turn, read_mask
from datamodules.decode.mask_sources import FileMask, LabelMap, MaskRequest
from datamodules.decode.reading import Turn, open_image, read_turn
from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.shards.shard_set import RawSample

TABLE = Path(__file__).parents[1] / "datamodules" / "READING.md"
HOLE = np.zeros((16, 24), dtype=np.uint8)
HOLE[4:12, 3:9] = 1  # 48 of 384 pixels
WHITE = HOLE * 255


def colours(inside: tuple[int, ...], outside: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.where(HOLE[..., None], np.uint8(inside), np.uint8(outside)).astype(np.uint8))


def palette(*entries: int, indices: np.ndarray = HOLE) -> Image.Image:
    image = Image.fromarray(indices, mode=None).convert("L")
    found = Image.new("P", image.size)
    found.putpalette(entries)
    found.putdata(indices.ravel().tolist())
    return found


def sixteen(inside: int, colour_type: int = 2) -> bytes:
    """A PNG of 16 bits and three or four channels, which Pillow does not write."""
    channels = {2: 3, 6: 4}[colour_type]
    rows = b"".join(
        b"\0" + (np.repeat(row[:, None].astype(int), channels, 1) * inside).astype(">u2").tobytes() for row in HOLE
    )
    header = struct.pack(">IIBBBBB", 24, 16, 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def noisy() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 26, HOLE.shape)
    return Image.fromarray(np.where(HOLE, 255 - noise, noise).astype(np.uint8))


def cut_photo() -> Image.Image:
    image = photo(1, 24, 16).convert("RGBA")
    image.putalpha(Image.fromarray(255 - WHITE))
    return image


WIDE = HOLE.astype(np.uint16)
READ: dict[str, Any] = {
    "grey, 8 bits": Image.fromarray(WHITE),
    "1 bit": Image.fromarray(WHITE).convert("1"),
    "RGB, black and white": colours((255,) * 3, (0,) * 3),
    "RGBA, opaque": colours((255,) * 4, (0, 0, 0, 255)),
    "black and white under one transparency": colours((255, 255, 255, 0), (0, 0, 0, 0)),
    "white, laid on nothing: RGBA": colours((255,) * 4, (255, 255, 255, 0)),
    "white, laid on nothing: LA": colours((255,) * 4, (0,) * 4).convert("LA"),
    "one colour, laid on nothing": colours((255, 0, 0, 255), (0,) * 4),
    "one colour on black": colours((255, 0, 0), (0,) * 3),
    "one dim colour on black": colours((128, 0, 0), (0,) * 3),
    "palette, black first": palette(0, 0, 0, 255, 255, 255),
    "palette, white first": palette(255, 255, 255, 0, 0, 0, indices=1 - HOLE),
    "palette of 0 and 1": palette(0, 0, 0, 1, 1, 1),
    "grey, 16 bits": Image.fromarray(WIDE * 65535),
    "16 bits, 0 and 255": Image.fromarray(WIDE * 255),
    "16 bits, 0 and 1": Image.fromarray(WIDE),
    "0 and 1": Image.fromarray(HOLE),
    "RGB of 0 and 1": colours((1,) * 3, (0,) * 3),
    "RGB, 16 bits": sixteen(65535),
    "noise of .9 to 1 and 0 to .1": noisy(),
    "with a colour profile": encode(Image.fromarray(WHITE).convert("RGB"), icc_profile=display_p3()),
}
REFUSED: dict[str, tuple[Any, str]] = {
    "a photo with a hole in its transparency": (cut_photo(), "several colours that is transparent in part"),
    "black, transparent in part": (colours((0, 0, 0, 255), (0,) * 4), "dark picture that is transparent in part"),
    "several colours": (
        palette(0, 0, 0, 200, 0, 0, 0, 200, 0, indices=HOLE + np.uint8(2) * (np.arange(24) > 20)),
        "a picture of several colours",
    ),
    "a colour on white": (colours((255, 0, 0), (255,) * 3), "a picture of several colours"),
    "class numbers": (Image.fromarray(HOLE * 3), "largest value is 3 of 255"),
    "class numbers, 255 for none": (
        Image.fromarray(HOLE + 255 * (np.arange(24) > 20).astype(np.uint8)),
        "class numbers",
    ),
    "faint": (Image.fromarray(HOLE * 100), "largest value is 100 of 255"),
    "16 bits, faint": (Image.fromarray(WIDE * 4095), "largest value is 4095 of 65535"),
    "RGB, 16 bits, faint": (sixteen(1), "16 bits whose largest value is below 256"),
    "palette of one colour": (palette(0, 0, 0, 0, 0, 0), "a palette whose colours are all the same"),
}


def data_of(image: Any) -> bytes:
    return image if isinstance(image, bytes) else encode(image)


def masked(data: bytes, **options: bool) -> np.ndarray:
    return np.asarray(read_mask(data, (24, 16), **options)) >= 128


@pytest.mark.parametrize("kind", READ)
def test_kinds_that_are_read(kind: str) -> None:
    data = data_of(READ[kind])
    assert np.array_equal(masked(data), HOLE > 0)
    assert np.array_equal(masked(data, inverted=True), HOLE == 0)


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_that_are_refused(kind: str) -> None:
    image, message = REFUSED[kind]
    raw = RawSample("s.tar", "k", {"png": encode(photo(1, 24, 16)), "mask.png": data_of(image)}, 0)
    with pytest.raises(ValueError, match=rf"s\.tar: sample 'k': mask: expected a mask in black and white .*{message}"):
        SampleDecoder(image_size=(16, 24), seed=0, augment=False)(raw)


def test_the_table_says_the_same() -> None:
    text = TABLE.read_text().partition("\n## Images\n")[0]
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row != "file"] == [*READ, *REFUSED]
    for kind, (_, message) in REFUSED.items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {kind} |"))
        assert message in line


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_ordinary_masks_keep_their_bits(mode: str) -> None:
    soft = Image.fromarray(np.arange(384, dtype=np.uint16).astype(np.uint8).reshape(16, 24))
    assert np.array_equal(read_mask(encode(soft.convert(mode)), (24, 16)), soft)


def test_holes_in_transparency() -> None:
    """As ComfyUI saves them, when it is said."""
    assert np.array_equal(masked(encode(cut_photo()), transparent=True), HOLE > 0)
    with pytest.raises(ValueError, match="expected a mask file with transparency"):
        masked(encode(Image.fromarray(WHITE)), transparent=True)
    found = FileMask(transparent=True)(MaskRequest({"mask.png": encode(cut_photo())}, (24, 16)))
    assert found is not None
    assert np.array_equal(np.asarray(found) >= 128, HOLE > 0)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files(kind: str) -> None:
    """Red strokes and black and white, with their noise; black with noise is empty; 0 and 1 are refused."""
    large = np.kron(HOLE, np.ones((8, 8), np.uint8))
    size = large.shape[::-1]
    red = Image.fromarray(np.stack([large * 255, large * 0, large * 0], axis=-1))
    for image in (red, Image.fromarray(large * 255)):
        found = np.asarray(read_mask(encode(image, kind, quality=90), size)) >= 128
        assert (found != (large > 0)).mean() < 0.02
    noise = np.random.default_rng(0).integers(0, 26, large.shape).astype(np.uint8)
    assert np.asarray(read_mask(encode(Image.fromarray(noise), kind), size)).max() < 128
    with pytest.raises(ValueError, match=r"largest value is [123] of 255"):
        read_mask(encode(Image.fromarray(large), kind, quality=100), size)


# Shape


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn", ["stored", "upright", "with its own EXIF"])
def test_masks_of_turned_photos(orientation: int, drawn: str) -> None:
    """White where the photo is white, whatever way it was drawn; of photos that keep their sides, only upright ones."""
    if drawn == "stored" and orientation < 5:
        return
    stored = Image.fromarray(WHITE)
    data = encode(stored.convert("RGB"), exif=exif_turned(orientation))
    decoder = SampleDecoder(image_size=(16, 24) if orientation < 5 else (24, 16), seed=0, augment=False)
    image = (decoder(RawSample("s", "k", {"png": data}, 0))["image"] >= 128)[:1]
    upright = Image.fromarray(image[0].numpy().astype(np.uint8) * 255)
    exif = exif_turned(orientation) if drawn == "with its own EXIF" else Image.Exif()
    for factor in (1, 2):
        mask = upright if drawn == "upright" else stored
        mask = mask.resize((mask.width * factor, mask.height * factor), Image.Resampling.NEAREST)
        sample = decoder(RawSample("s", "k", {"png": data, "mask.png": encode(mask, exif=exif)}, 0))
        assert sample["mask"].equal(image)
        decoder.masks.sources = [LabelMap([255])]
        assert decoder(RawSample("s", "k", {"png": data, "label.png": encode(mask, exif=exif)}, 0))["mask"].equal(image)
        decoder.masks.sources = [FileMask()]


@pytest.mark.parametrize("size", [(32, 32), (16, 24), (24, 12), (30, 16), (600, 403)])
def test_masks_of_another_shape_are_refused(size: tuple[int, int]) -> None:
    message = rf"expected a mask of the photo's shape, 24 x 16 pixels or the same .*, got {size[0]} x {size[1]}"
    with pytest.raises(ValueError, match=message):
        read_mask(encode(Image.new("L", size)), (24, 16))
    with pytest.raises(ValueError, match=message):
        LabelMap([0])(MaskRequest({"label.png": encode(Image.new("L", size))}, (24, 16)))


@pytest.mark.parametrize("scale", [0.11, 0.25, 0.333, 0.5, 1.7])
def test_rounded_sides_are_the_same_shape(scale: float) -> None:
    for rounding in (round, int):
        mask_turn((rounding(1000 * scale), rounding(667 * scale)), (1000, 667), Turn())


def test_a_turned_photo_names_both_sizes() -> None:
    turn = read_turn(open_image(encode(photo(1), exif=exif_turned()), 10_000))
    with pytest.raises(ValueError, match=r"40 x 48 pixels, or 48 x 40 as it is stored, or the same .*, got 30 x 90"):
        mask_turn((30, 90), (40, 48), turn)
