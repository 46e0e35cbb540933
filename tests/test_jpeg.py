"""JPEG shortcuts: what is left out is what nobody sees."""

import io

import numpy as np
import pytest
from data_fixtures import encode
from PIL import Image

from datamodules.decode.codecs import cut_below, read_frame, read_pixels, reduction

SIZE = (200, 160)


def jpeg(mode: str = "RGB", **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (20, 25, 3)).astype(np.uint8)
    return encode(Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).convert(mode), "JPEG", **options)


def rows(data: bytes, scale: int, count: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft(None, (image.width // scale, image.height // scale))
    return np.asarray(image)[:count]


FILES = {
    "420": jpeg(subsampling="4:2:0"),
    "422": jpeg(subsampling="4:2:2"),
    "444": jpeg(subsampling="4:4:4"),
    "grey": jpeg("L"),
    "cmyk": jpeg("CMYK"),
    "restarts": jpeg(restart_marker_rows=1),
    "optimized": jpeg(optimize=True, quality=30),
    "exif": jpeg(exif=Image.Exif(), comment=b"x" * 300, dpi=(72, 72)),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_the_rows_above_the_cut_are_those_of_the_whole(kind: str, scale: int) -> None:
    for bottom in (8, 16, 56, 96):
        short = cut_below(FILES[kind], bottom).data
        assert len(short) == len(FILES[kind])
        assert bottom < Image.open(io.BytesIO(short)).height <= bottom + 31
        assert np.array_equal(rows(short, scale, bottom // scale), rows(FILES[kind], scale, bottom // scale))


def test_near_the_end_nothing_is_cut() -> None:
    assert cut_below(FILES["420"], 150).data is FILES["420"]
    assert cut_below(FILES["420"], 129).data is FILES["420"]
    assert cut_below(FILES["420"], 128).data is not FILES["420"]


@pytest.mark.parametrize("data", [jpeg(progressive=True), FILES["420"][:-2], FILES["420"][:100], b"\xff\xd8\xff", b""])
def test_what_cannot_be_cut_stays(data: bytes) -> None:
    assert cut_below(data, 8).data is data


def test_a_scan_of_one_component_is_left_alone() -> None:
    """A file with a scan per colour has all rows in each of them."""
    data = bytearray(FILES["444"])
    data[data.index(b"\xff\xda") + 4] = 1
    assert cut_below(bytes(data), 8).data == data


def test_frame() -> None:
    frame = read_frame(FILES["420"])
    assert frame is not None
    assert frame[1:] == (160, 16, 3)
    assert FILES["420"][frame.offset : frame.offset + 2] == (160).to_bytes(2, "big")


def test_mutated_headers_are_cut_or_left() -> None:
    """Whatever the bytes say: no error of ours."""
    generator = np.random.default_rng(0)
    head = FILES["420"].index(b"\xff\xda")
    for _ in range(400):
        data = bytearray(FILES["420"])
        for at in generator.integers(0, head + 10, 4):
            data[at] = generator.integers(0, 256)
        assert len(cut_below(bytes(data), 16).data) == len(data)


@pytest.mark.parametrize(
    ("factor", "gap", "expected"),
    [(3.9, 2.0, 1), (4.0, 2.0, 2), (7.9, 2.0, 2), (8.0, 2.0, 4), (99.0, 2.0, 8), (2.0, 1.0, 2), (1.9, 1.0, 1)],
)
def test_reduction_leaves_the_gap(factor: float, gap: float, expected: int) -> None:
    assert reduction(factor, gap) == expected


# Pixels


def pillow(data: bytes, scale: int = 1) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image.draft(None, (image.width // scale, image.height // scale))
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "cmyk"])
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_pixels_are_those_of_pillow(kind: str, scale: int) -> None:
    found = read_pixels(FILES[kind], SIZE, scale)
    assert found is not None
    assert np.array_equal(found, pillow(FILES[kind], scale))
    short = cut_below(FILES[kind], 56).data
    found = read_pixels(short, Image.open(io.BytesIO(short)).size, scale, strict=False)
    assert found is not None
    assert np.array_equal(found[: 56 // scale], pillow(FILES[kind], scale)[: 56 // scale])


def test_progressive_files_too() -> None:
    data = jpeg(progressive=True)
    found = read_pixels(data, SIZE, 2)
    assert found is not None
    assert np.array_equal(found, pillow(data, 2))


def test_coarse_chroma_leaves_the_luma() -> None:
    coarse, fine = (read_pixels(FILES["420"], SIZE, 1, coarse=each) for each in (True, False))
    assert coarse is not None
    assert fine is not None
    luma = [np.asarray(Image.fromarray(each).convert("L")).astype(int) for each in (coarse, fine)]
    assert np.abs(luma[0] - luma[1]).mean() < 3 < np.abs(coarse.astype(int) - fine).mean()


def swap_height(data: bytes, height: int) -> bytes:
    frame = read_frame(data)
    assert frame is not None
    return data[: frame.offset] + height.to_bytes(2, "big") + data[frame.offset + 2 :]


@pytest.mark.parametrize(
    "data",
    [FILES["cmyk"], FILES["420"][:-500], FILES["420"][:100], b"", b"GIF89a", swap_height(FILES["420"], 80)],
    ids=["cmyk", "cut short", "header alone", "empty", "no jpeg", "another size"],
)
def test_pillow_decides_what_is_not_clean(data: bytes) -> None:
    assert read_pixels(data, SIZE, 1) is None
