"""Mask sources: each way to store a mask comes out as white = inpaint, upright; what is not a mask is named."""

import pickle
import struct
import zlib

import numpy as np
import pytest
from data_fixtures import encode, exif_turned, photo
from PIL import Image

from datamodules.decode.mask_sources import AlphaMask, FileMask, LabelMap, MaskRequest, MaskSource, read_labels

LEFT = np.zeros((4, 6), dtype=np.uint8)
LEFT[:, :2] = 255


def request(**fields: bytes) -> MaskRequest:
    named = {name.replace("_", "."): data for name, data in fields.items()}
    return MaskRequest({"png": encode(photo(1, 6, 4)), **named}, (6, 4))


def found(source: MaskSource, **fields: bytes) -> list[list[int]]:
    mask = source(request(**fields))
    assert mask is not None
    assert mask.mode == "L"
    return (np.asarray(mask) >= 128).astype(int).tolist()


def levels(mask: np.ndarray) -> list[list[int]]:
    return (mask > 0).astype(int).tolist()


def turned(image: Image.Image, kind: str = "PNG") -> bytes:
    """The image as a camera on its side would store it."""
    return encode(image.transpose(Image.Transpose.ROTATE_90), kind, exif=exif_turned())


@pytest.mark.parametrize("source", [FileMask(True), AlphaMask(), LabelMap([1, 2])])
def test_sources_pickle_and_find_nothing_where_nothing_is(source: MaskSource) -> None:
    again = pickle.loads(pickle.dumps(source))
    assert vars(again) == vars(source)
    assert again(request()) is None


# Files


@pytest.mark.parametrize(("field", "kind"), [("mask_png", "PNG"), ("mask_webp", "WEBP"), ("mask_jpeg", "JPEG")])
def test_file_and_its_inverse(field: str, kind: str) -> None:
    left = np.kron(LEFT, np.ones((8, 8), dtype=np.uint8))
    data = encode(Image.fromarray(left), kind)
    assert found(FileMask(), **{field: data}) == levels(left)
    assert found(FileMask(inverted=True), **{field: data}) == levels(255 - left)


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA"])
def test_file_of_any_mode(mode: str) -> None:
    assert found(FileMask(), mask_png=encode(Image.fromarray(LEFT).convert(mode))) == levels(LEFT)


def test_file_of_sixteen_bits() -> None:
    assert found(FileMask(), mask_png=encode(Image.fromarray(LEFT.astype(np.uint16) * 200))) == levels(LEFT)


def test_file_is_turned_upright() -> None:
    assert found(FileMask(), mask_png=turned(Image.fromarray(LEFT))) == levels(LEFT)


def test_a_black_file_is_an_empty_mask() -> None:
    assert not np.any(found(FileMask(), mask_png=encode(Image.new("L", (6, 4)))))


def test_file_too_large() -> None:
    with pytest.raises(ValueError, match="expected 1 to 23 pixels, got 6 x 4"):
        FileMask()(request(mask_png=encode(Image.fromarray(LEFT)))._replace(max_pixels=23))


# Alpha


def cut_out(alpha: np.ndarray) -> Image.Image:
    image = photo(1, alpha.shape[1], alpha.shape[0]).convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    return image


def test_alpha_below_one_half_is_inpainted() -> None:
    alpha = np.array([[0, 127, 128, 255]], dtype=np.uint8)
    assert found(AlphaMask(), png=encode(cut_out(alpha))) == [[1, 1, 0, 0]]
    assert found(AlphaMask(inverted=True), png=encode(cut_out(alpha))) == [[0, 0, 1, 1]]


def test_alpha_of_webp_palette_and_turned() -> None:
    assert found(AlphaMask(), png=encode(cut_out(255 - LEFT), "WEBP", lossless=True)) == levels(LEFT)
    assert found(AlphaMask(), png=turned(cut_out(255 - LEFT))) == levels(LEFT)
    palette = Image.fromarray(LEFT // 255, mode=None).convert("P")
    palette.putdata([int(value > 0) for value in LEFT.ravel()])
    assert found(AlphaMask(), png=encode(palette, transparency=1)) == levels(LEFT)


def test_an_opaque_image_has_no_mask() -> None:
    opaque = encode(cut_out(np.full((4, 6), 255, dtype=np.uint8)))
    assert AlphaMask()(request(png=opaque)) is None
    assert AlphaMask(inverted=True)(request(png=opaque)) is None


# Label maps


def palette_map(labels: np.ndarray) -> Image.Image:
    image = Image.new("P", labels.shape[::-1])
    image.putpalette(list(range(256)) * 3)
    image.putdata(labels.ravel().tolist())
    return image


@pytest.mark.parametrize("field", ["label_png", "seg_png"])
def test_chosen_labels(field: str) -> None:
    labels = np.array([[0, 1, 2, 255]], dtype=np.uint8)
    for image in (Image.fromarray(labels), palette_map(labels), Image.fromarray(labels.astype(np.uint16))):
        assert found(LabelMap([1, 255]), **{field: encode(image)}) == [[0, 1, 0, 1]]
    assert LabelMap([3])(request(**{field: encode(Image.fromarray(labels))})) is None


def test_sixteen_bit_labels() -> None:
    labels = np.array([[7, 300, 65535]], dtype=np.uint16)
    assert read_labels(encode(Image.fromarray(labels)), 99).tolist() == labels.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits_are_not_stretched(bits: int) -> None:
    labels = np.array([[0, 1, 1, 0], [2**bits - 1, 0, 0, 1]], dtype=np.uint8)
    grey = few_bit_png(labels, bits)
    assert read_labels(grey, 99).tolist() == labels.tolist()
    assert read_labels(encode(palette_map(labels), bits=bits), 99).tolist() == labels.tolist()


def few_bit_png(labels: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits, which Pillow reads but does not write."""
    height, width = labels.shape
    rows = b""
    for row in labels.tolist():
        line = "".join(f"{value:0{bits}b}" for value in row)
        rows += b"\0" + int(line.ljust(-(-len(line) // 8) * 8, "0"), 2).to_bytes(-(-len(line) // 8))
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_labels_are_turned_upright() -> None:
    assert read_labels(turned(palette_map(LEFT)), 99).tolist() == LEFT.tolist()


def test_colours_are_not_labels() -> None:
    with pytest.raises(ValueError, match="expected a label map in a grey or palette PNG, got a PNG of mode RGB"):
        LabelMap([1])(request(label_png=encode(photo(1))))
    with pytest.raises(ValueError, match="got a JPEG of mode L"):
        LabelMap([1])(request(label_png=encode(Image.new("L", (4, 4)), "JPEG")))


@pytest.mark.parametrize("ids", [[], [-1], [65536]])
def test_bad_ids_are_named(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"LabelMap\.ids: expected class numbers 0 to 65535, at least one, got"):
        LabelMap(ids)
