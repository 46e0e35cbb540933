"""Image sizes from headers: upright, for every format, and (0, 0) for what is no image."""

import struct
import warnings
import zlib

import pytest
from data_fixtures import encode, exif_turned, photo
from PIL import PngImagePlugin

from datamodules.decode.reading import image_size, open_image, upright_size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_upright(kind: str, orientation: int) -> None:
    data = encode(photo(1, 30, 20), kind, exif=exif_turned(orientation))
    assert image_size(data) == upright_size(open_image(data, 1000)) == ((20, 30) if orientation > 4 else (30, 20))


def test_png_with_exif_after_its_pixels() -> None:
    data = encode(photo(1, 30, 20))
    exif = exif_turned(6).tobytes()[6:]
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    assert image_size(data[:-12] + chunk + data[-12:]) == (20, 30)


def test_png_with_xmp() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="8"/>')
    data = encode(photo(1, 30, 20), "PNG", pnginfo=info)
    assert image_size(data) == upright_size(open_image(data, 1000))


def test_a_png_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photo(1, 30, 20))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    assert image_size(data) == (30, 20)


@pytest.mark.parametrize("data", [b"", b"x", b"GIF89a" + bytes(100), encode(photo(1), "JPEG")[:40]])
def test_no_image(data: bytes) -> None:
    assert image_size(data) == (0, 0)


def test_large_image_has_its_size_without_a_warning() -> None:
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13)
    body = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    data = header + body + struct.pack(">I", zlib.crc32(body)) + encode(photo(1))[33:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(data) == (10_000, 10_000)
