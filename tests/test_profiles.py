"""Colour profiles: every picture comes out in sRGB, the right value by hand; sRGB's own cost no bit."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from data_fixtures import encode, photo
from icc_profiles import SRGB, adobe_rgb, display_p3, gamma, grey, make_profile, srgb, srgb_curve
from PIL import Image, ImageCms

from datamodules.decode.codecs import from_srgb, profile_fault, to_srgb
from datamodules.decode.reading import open_image, to_rgb
from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.shards.shard_set import RawSample

P3_GREEN, SRGB_GREEN = (90, 200, 60), (0, 203, 7)
KINDS = [("jpg", "JPEG", {"quality": 100, "subsampling": 0}), ("png", "PNG", {}), ("webp", "WEBP", {"lossless": True})]


def decode(field: str, data: bytes, size: int = 8) -> dict[str, Any]:
    decoder = SampleDecoder(image_size=(size, size), seed=0, augment=False)
    return decoder(RawSample("s.tar", "k", {field: data}, 0))


def colour(field: str, data: bytes) -> list[int]:
    """Of a picture of one colour, as training sees it."""
    return decode(field, data)["image"].flatten(1).float().mean(1).tolist()


def linear(value: np.ndarray) -> np.ndarray:
    """sRGB's and Display P3's numbers, 0..255, as light."""
    value = value / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def test_the_right_value_by_hand() -> None:
    """The published matrix from P3's primaries to sRGB's, in light; out of gamut is cut."""
    matrix = [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]
    light = np.clip(np.array(matrix) @ linear(np.array(P3_GREEN)), 0, 1)
    numbers = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert numbers.round().tolist() == pytest.approx(SRGB_GREEN, abs=1)


@pytest.mark.parametrize(("field", "kind", "options"), KINDS)
@pytest.mark.parametrize("size", [8, 64])  # 64 pixels are reduced while a JPEG is decoded
def test_display_p3_becomes_srgb(field: str, kind: str, options: dict[str, Any], size: int) -> None:
    data = encode(Image.new("RGB", (size, size), P3_GREEN), kind, icc_profile=display_p3(), **options)
    assert colour(field, data) == pytest.approx(SRGB_GREEN, abs=8 if kind == "JPEG" else 1)


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "L", "1", "I;16"])
def test_profiles_of_other_modes(mode: str) -> None:
    """Transparency stays in place, and what shows through it is the background's own colour."""
    if mode in ("RGBA", "P"):
        image = Image.new(mode, (8, 8), (*P3_GREEN, 255) if mode == "RGBA" else 0)
        if mode == "P":
            image.putpalette(P3_GREEN)
        expected: Any = SRGB_GREEN
    else:
        image = Image.new("L", (8, 8), 255 if mode == "1" else 50).convert("I;16" if mode == "I;16" else mode)
        expected = (255,) * 3 if mode == "1" else (46,) * 3  # (50 / 255) ** 2.2 of light is 46 in sRGB
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 50 * 257, np.uint16))
    profile = display_p3() if mode in ("RGBA", "P") else grey(2.2)
    if "A" in mode:
        image.putalpha(Image.fromarray(np.repeat(np.array([0, 255], np.uint8), 32).reshape(8, 8)))
    pixels = decode("png", encode(image, icc_profile=profile))["image"]
    assert pixels[:, 4:].flatten(1).float().mean(1).tolist() == pytest.approx(expected, abs=1)
    assert pixels[:, 0, 0].tolist() == ([255] * 3 if "A" in mode else pixels[:, 7, 7].tolist())


def test_hidden_colours_are_converted_too() -> None:
    image = open_image(encode(Image.new("RGBA", (2, 2), (*P3_GREEN, 0)), icc_profile=display_p3()), 9)
    assert np.asarray(to_rgb(image, None))[0, 0].tolist() == pytest.approx(SRGB_GREEN, abs=1)


def test_grey_jpegs() -> None:
    image = Image.new("L", (16, 16), 10)
    assert colour("jpg", encode(image, "JPEG", icc_profile=grey(2.2))) == [3, 3, 3]  # .0008 of light
    assert colour("jpg", encode(image, "JPEG", icc_profile=make_profile("P3", None, srgb_curve(), b"GRAY"))) == [10] * 3
    in_light = make_profile("light", SRGB, gamma(1))  # of colours, as grey pictures often keep it
    assert colour("jpg", encode(image, "JPEG", icc_profile=in_light)) == [56] * 3  # 10 / 255 of light


def test_adobe_rgb_red() -> None:
    """Its red (200, 0, 0) has 0.586 of light, 1.398 times as much in sRGB's red, whose green and blue are below 0."""
    data = encode(Image.new("RGB", (8, 8), (200, 0, 0)), icc_profile=adobe_rgb())
    assert colour("png", data) == pytest.approx([233, 0, 0], abs=1)


@pytest.mark.parametrize(("field", "kind", "options"), KINDS)
def test_srgb_profiles_change_no_bit(field: str, kind: str, options: dict[str, Any]) -> None:
    """Pillow's and one of rounded numbers, whose conversion would move some by one level."""
    plain = decode(field, encode(photo(1, 64, 64), kind, **options), 16)["image"]
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), srgb()):
        sample = decode(field, encode(photo(1, 64, 64), kind, icc_profile=profile, **options), 16)
        assert torch.equal(sample["image"], plain)
        assert "notes" not in sample


def test_pixels_are_those_of_a_file_converted_beforehand() -> None:
    before = photo(2, 64, 64)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(display_p3()))
    after = ImageCms.profileToProfile(before, profile, ImageCms.createProfile("sRGB"))
    after.info.clear()
    found = decode("png", encode(before, icc_profile=display_p3()), 16)["image"]
    assert torch.equal(found, decode("png", encode(after), 16)["image"])


def cmyk_in_rgb() -> bytes:
    return make_profile("CMYK", None, srgb_curve(), b"CMYK")


@pytest.mark.parametrize(
    ("mode", "profile", "fault"),
    [
        ("RGB", b"no profile", "expected a colour profile that can be read"),
        ("RGB", display_p3()[:300], "expected a colour profile that can be used"),
        ("RGB", grey(2.2), "expected a colour profile for a picture of mode RGB, got one of GRAY"),
        ("RGB", cmyk_in_rgb(), "expected a colour profile for a picture of mode RGB, got one of CMYK"),
        ("CMYK", display_p3(), "expected a colour profile for a picture of mode CMYK, got one of RGB"),
        ("CMYK", cmyk_in_rgb(), "expected a colour profile that can be used"),
        ("RGB", display_p3() + bytes(5 << 20), "expected a colour profile of at most 4194304 bytes"),
    ],
)
def test_unusable_profiles_are_as_none_and_noted(mode: str, profile: bytes, fault: str) -> None:
    image = photo(1, 16, 16).convert(mode)
    data = encode(image, "JPEG", icc_profile=profile)
    sample = decode("jpg", data, 16)
    assert torch.equal(sample["image"], decode("jpg", encode(image, "JPEG"), 16)["image"])
    assert sample["notes"] == [("bad_profile", "k")]
    assert fault in str(profile_fault(open_image(data, 999)))


@pytest.mark.parametrize("profile", [display_p3(), adobe_rgb(), srgb(), None])
def test_the_way_back(profile: bytes | None) -> None:
    """Of colours that both can hold, to two levels."""
    middle = Image.fromarray((np.asarray(photo(3, 32, 32)) // 3 + 90).astype(np.uint8))
    back = from_srgb(to_srgb(middle, profile), profile, "RGB")
    assert np.abs(np.asarray(back).astype(int) - np.asarray(middle)).max() <= 2


def test_the_way_back_to_grey() -> None:
    image = Image.new("RGB", (2, 2), (46, 46, 46))
    assert from_srgb(image, grey(2.2), "L").getpixel((0, 0)) == 50
    assert from_srgb(image, None, "L").getpixel((0, 0)) == 46
