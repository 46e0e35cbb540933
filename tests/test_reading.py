"""Images: every mode comes out in RGB, and shortcuts hardly show."""

import struct
import zlib

import numpy as np
import pytest
import torch
from data_fixtures import encode, photo
from photo_mosaics import as_jpeg, mosaic
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.decode.augmentations import Crop, centre_crop, crop_numbers, random_crop
from datamodules.decode.reading import (
    has_alpha,
    image_bytes,
    open_image,
    open_upright,
    plan_view,
    read_view,
    to_rgb,
    upright_size,
)
from datamodules.shards.shard_specs import open_shards

NEVER = 1e9  # a reducing gap that no crop has


def test_sixteen_bit_grey_is_scaled() -> None:
    grey = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    image = open_image(encode(Image.fromarray(grey)), 100)
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_modes_without_alpha(mode: str) -> None:
    image = photo(2).convert(mode)
    assert np.array_equal(to_rgb(image), image.convert("RGB"))


def test_cmyk_jpeg() -> None:
    image = open_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), 100)
    assert np.asarray(to_rgb(image))[0, 0] == pytest.approx([255, 0, 0], abs=3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_the_background(mode: str) -> None:
    image = Image.new(mode, (2, 1), 0)
    assert np.asarray(to_rgb(image, (10, 20, 30)))[0, 0].tolist() == [10, 20, 30]
    assert np.asarray(to_rgb(image))[0, 0].tolist() == [255, 255, 255]


def test_palette_and_grey_transparency() -> None:
    for mode in ("P", "L"):
        data = encode(Image.new(mode, (2, 2), 0), transparency=0)
        assert np.asarray(to_rgb(open_image(data, 100), (1, 2, 3)))[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_without_a_background_hidden_colours_show(mode: str) -> None:
    if mode == "RGBA":
        image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    else:
        image = Image.new("P", (2, 1), 0)
        image.putpalette([10, 20, 30])
        image = open_image(encode(image, transparency=b"\0"), 100)
    assert has_alpha(image)
    assert np.asarray(to_rgb(image, None))[0, 0].tolist() == [10, 20, 30]


def test_large_headers_are_refused_without_a_warning() -> None:
    """Pillow warns from 89 megapixels on; our limit says more."""
    header = struct.pack(">IIBBBBB", 10000, 10000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    with pytest.raises(ValueError, match="expected 1 to 50000000 pixels, got 10000 x 10000"):
        open_image(b"\x89PNG\r\n\x1a\n" + b"".join(parts), 50_000_000)


# Views


def read(data: bytes, crop: Crop, size: tuple[int, int], gap: float = 2.0) -> Tensor:
    opened = open_upright(data, 10**8)
    return read_view(opened, plan_view(opened, crop, size, gap), size)


def psnr(a: Tensor, b: Tensor) -> float:
    return (255**2 / (a.double() - b.double()).square().mean()).log10().item() * 10


def whole(data: bytes, crop: Crop, size: tuple[int, int]) -> Tensor:
    """The full decode and an antialiased resize, by Pillow."""
    image = ImageOps.exif_transpose(Image.open(open_image(data, 10**8).fp)).convert("RGB")
    small = image.crop(crop.box).resize(size[::-1], Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(ImageOps.mirror(small) if crop.flip else small)).permute(2, 0, 1)


@pytest.mark.parametrize(("quality", "subsampling"), [(75, "4:2:0"), (90, "4:2:0"), (92, "4:4:4")])
def test_forty_decibels_to_the_full_decode(quality: int, subsampling: str) -> None:
    """Photos of 1.6 megapixels, in crops of 2 to 8 times the target."""
    values, reduced = [], 0
    for number in range(2):
        data = as_jpeg(mosaic(number), quality, subsampling=subsampling)
        for position, side in enumerate((96, 112, 128, 160, 224)):
            size = (side, side)
            crop = random_crop(1536, 1024, size, crop_numbers(number, position), 0.6, 0.5)
            reduced += plan_view(open_upright(data, 10**8), crop, size).scale > 1
            values.append(psnr(read(data, crop, size), whole(data, crop, size)))
    assert min(values) > 40
    assert reduced >= 7


def test_forty_decibels_of_small_sharp_photos() -> None:
    """The embedded ones, of 256 pixels: detail of a pixel, and coarse chroma."""
    photos, values, coarse = open_shards("embedded:train"), [], 0
    for number in range(0, 160, 4):
        data = image_bytes(photos.read(number).fields)
        frame = upright_size(open_image(data, 10**8))
        crop = random_crop(*frame, (64, 64), crop_numbers(0, number), 0.6, 0.5)
        coarse += plan_view(open_upright(data, 10**8), crop, (64, 64)).coarse
        values.append(psnr(read(data, crop, (64, 64)), whole(data, crop, (64, 64))))
    assert min(values) > 40
    assert coarse >= 30


def test_a_smaller_gap_is_further_off() -> None:
    data = as_jpeg(mosaic(0), 90)
    crop = centre_crop(1536, 1024, (256, 256))
    assert crop.box == (256, 0, 1280, 1024)
    values = [psnr(read(data, crop, (256, 256), gap), whole(data, crop, (256, 256))) for gap in (1.0, 2.0, NEVER)]
    assert 30 < values[0] < 40 < values[1] < 50 < values[2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_and_cut_photos_stand_upright(orientation: int) -> None:
    """Of crops anywhere, in every orientation, also where the file's sides are no multiple of the grid."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    scales = []
    for width, height in ((512, 384), (509, 387)):
        data = as_jpeg(mosaic(3, 512, 512).crop((0, 0, width, height)), 90, exif=exif)
        frame = upright_size(open_image(data, 10**8))
        for position in range(4):
            crop = random_crop(*frame, (40, 32), crop_numbers(orientation, position), 0.5, 0.5)
            scales.append(plan_view(open_upright(data, 10**8), crop, (40, 32), 1.5).scale)
            assert psnr(read(data, crop, (40, 32), 1.5), whole(data, crop, (40, 32))) > 32
            assert psnr(read(data, crop, (40, 32), NEVER), whole(data, crop, (40, 32))) > 50
    assert min(scales[:4]) >= 2
    assert orientation == 1 or orientation == 5 or min(scales[4:]) == 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_modes_are_reduced_too(mode: str) -> None:
    data = as_jpeg(mosaic(4, 512, 512).convert(mode), 90)
    crop = centre_crop(512, 512, (64, 64))
    assert plan_view(open_upright(data, 10**8), crop, (64, 64)).scale == 4
    assert psnr(read(data, crop, (64, 64)), whole(data, crop, (64, 64))) > 38


def test_a_file_cut_short_is_refused_wherever_the_crop_lies() -> None:
    data = as_jpeg(mosaic(5, 512, 512), 90)
    top = Crop((0, 0, 256, 256), flip=False)
    assert read(data, top, (64, 64)).shape == (3, 64, 64)
    with pytest.raises(OSError, match="truncated"):
        read(data[:-1000], top, (64, 64))
