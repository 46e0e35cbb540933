"""Other formats become PNGs of the same pixels; what training opens stays byte for byte."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from data_fixtures import encode, exif_turned, photo
from PIL import Image, ImageCms, ImageOps

from datamodules.decode import conversion
from datamodules.decode.conversion import is_picture, stored_picture, suffix_of, why_unread

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LOSSLESS = {"bmp": "BMP", "dib": "DIB", "gif": "GIF", "tif": "TIFF", "tiff": "TIFF", "ppm": "PPM", "pcx": "PCX"}
LOSSLESS |= {"tga": "TGA", "sgi": "SGI", "qoi": "QOI", "dds": "DDS", "jp2": "JPEG2000", "ico": "ICO"}


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=("PNG",))


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_pixels_of_other_formats(suffix: str) -> None:
    picture = photo(1, 48, 48)
    picture = picture.quantize(64) if suffix == "gif" else picture
    stored = stored_picture(encode(picture, LOSSLESS[suffix]), f"a.{suffix.upper()}", 10_000)
    assert (stored.suffix, stored.notes) == ("png", ("converted to PNG",))
    assert np.array_equal(opened(stored.data).convert("RGB"), picture.convert("RGB"))


@pytest.mark.parametrize(
    ("kind", "suffix", "new"), [("JPEG", "jpe", "jpg"), ("JPEG", "JFIF", "jpg"), ("JPEG", "jpeg", "jpeg")]
)
def test_what_training_opens_stays_byte_for_byte(kind: str, suffix: str, new: str) -> None:
    data = encode(photo(1), kind)
    assert stored_picture(data, f"a.{suffix}", 10_000)[:3] == (new, data, ())


def test_the_content_says_what_a_file_is() -> None:
    assert stored_picture(png := encode(photo(1)), "a.tiff", 10_000)[:3] == ("png", png, ())
    assert stored_picture(png, "a.jpg", 10_000)[:3] == ("jpg", png, ())  # training looks at the content too
    assert stored_picture(encode(photo(1), "GIF"), "a.jpg", 10_000).suffix == "png"
    with pytest.raises(ValueError, match=r"cannot be read as a picture$"):
        stored_picture(encode(photo(1), "TGA"), "a.jpg", 10_000)
    with pytest.raises(ValueError, match=r"cannot be read as a picture$"):
        stored_picture(encode(photo(1), "EPS"), "a.tiff", 10_000)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "JPEG2000"])
def test_16_bits_stay(kind: str) -> None:
    grey = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    data = encode(Image.fromarray(grey), kind)
    stored = stored_picture(data, f"a.{'pgm' if kind == 'PPM' else kind}", 10_000)
    image = opened(stored.data)
    assert image.mode.startswith("I;16")
    assert np.array_equal(np.asarray(image), grey)


def test_other_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="expected whole numbers as pixels, got floating-point ones"):
        stored_picture(encode(Image.new("F", (4, 4)), "TIFF"), "a.tif", 10_000)
    with pytest.raises(ValueError, match="expected grey values 0 to 65535, got 70000 to 70000"):
        stored_picture(encode(Image.new("I", (4, 4), 70_000), "TIFF"), "a.tif", 10_000)
    with pytest.raises(ValueError, match="expected 1 to 10 pixels, got 4 x 4"):
        stored_picture(encode(Image.new("L", (4, 4)), "TIFF"), "a.tif", 10)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
def test_pixels_stay_as_stored_and_so_does_the_rotation(kind: str, orientation: int) -> None:
    """A mask drawn on the stored pixels must still find them so."""
    picture = photo(1, 48, 40)
    stored = opened(stored_picture(encode(picture, kind, exif=exif_turned(orientation)), "a.tif", 10_000).data)
    assert stored.getexif().get(0x0112, 1) == orientation
    if kind == "TIFF":
        assert np.array_equal(stored, picture)
    upright = np.asarray(ImageOps.exif_transpose(stored), dtype=int)
    turned = picture.copy()
    turned.getexif()[0x0112] = orientation
    assert np.abs(upright - np.asarray(ImageOps.exif_transpose(turned), dtype=int)).mean() < 9  # AVIF is lossy


@pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
def test_a_profile_is_kept(kind: str) -> None:
    stored = stored_picture(encode(photo(1), kind, icc_profile=PROFILE), "a.tif", 10_000)
    assert opened(stored.data).info["icc_profile"] == PROFILE


def test_no_profile_of_another_colour_space_is_kept() -> None:
    stored = opened(stored_picture(encode(photo(1).convert("CMYK"), "TIFF", icc_profile=PROFILE), "a.tif", 9999).data)
    assert stored.mode == "RGB"
    assert "icc_profile" not in stored.info


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "AVIF", "PNG", "WEBP"])
def test_the_first_of_several_pictures_is_taken_and_it_is_told(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    stored = stored_picture(encode(first, kind, save_all=True, append_images=[second]), f"a.{kind}", 10_000)
    assert stored.notes[0] == "animated or of several pages: the first picture is taken"
    with Image.open(io.BytesIO(stored.data)) as image:
        assert abs(image.convert("RGB").getpixel((4, 4))[0] - 200) < 20


def test_a_profile_that_cannot_be_used_is_told() -> None:
    for kind in ("PNG", "TIFF"):
        stored = stored_picture(encode(photo(1), kind, icc_profile=b"no profile"), "a.tif", 10_000)
        assert stored.notes[0] == "with a colour profile that cannot be used: its numbers are taken for sRGB"


def test_transparency_stays() -> None:
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert opened(stored_picture(encode(clear, "TIFF"), "a.tif", 99).data).getpixel((0, 0)) == (10, 20, 30, 0)
    gif = photo(1, 8, 8).quantize(8)
    stored = opened(stored_picture(encode(gif, "GIF", transparency=gif.getpixel((0, 0))), "a.gif", 99).data)
    assert stored.convert("RGBA").getpixel((0, 0))[3] == 0


def test_names() -> None:
    assert [suffix_of(name) for name in ("a.B.JPG", "a", ".jpg", "a.")] == ["jpg", "", "", ""]
    assert all(map(is_picture, ("a.jpe", "a.JFIF", "a.tiff", "a.ppm", "x.y.avif")))
    assert not any(map(is_picture, ("a.txt", "jpg", "a.eps", "a.dng", ".jpg")))
    assert why_unread("a.NEF") == "a .nef picture, which is not read (save it as PNG or JPEG)"
    assert why_unread("a.txt") is why_unread("a.jpg") is None


@pytest.fixture
def no_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    conversion._decoders.cache_clear()
    yield
    conversion._decoders.cache_clear()


def test_heic_without_its_package_is_named(no_heif: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    assert not is_picture("IMG_1.HEIC")
    assert why_unread("IMG_1.HEIC") == "in HEIC (pip install 'inpaint-module[heic]' reads it)"
    with pytest.raises(
        ValueError, match=r"cannot be read as a picture; it is a HEIC picture, pip install 'inpaint-mod"
    ):
        stored_picture(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "IMG_1.jpg", 99)


def test_heic() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    picture = photo(1, 64, 48)
    data = encode(picture, "HEIF", quality=-1, chroma=444, icc_profile=PROFILE)
    stored = stored_picture(data, "IMG_1.HEIC", 10_000)
    assert (stored.suffix, stored.notes) == ("png", ("converted to PNG",))
    assert opened(stored.data).info["icc_profile"] == PROFILE
    assert np.abs(np.asarray(opened(stored.data), dtype=int) - np.asarray(picture)).max() <= 3
