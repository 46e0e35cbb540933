"""Images: every mode comes out in RGB."""

import numpy as np
import pytest
from data_fixtures import encode, photo
from PIL import Image

from datamodules.images import has_alpha, open_image, to_rgb


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
