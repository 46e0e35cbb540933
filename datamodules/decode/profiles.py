"""Colour profiles: pictures of any ICC profile -> sRGB, which is what models and autoencoders are trained on.

By Pillow's ImageCms with its default intent, so that the numbers are those of `ImageCms.profileToProfile`. Pillow reads
the profiles of JPEG (APP2), PNG (iCCP) and WEBP (ICCP). PNG's gAMA, cHRM and cICP, and EXIF's mark of Adobe RGB, it
does not apply, and neither do we. The numbers of a picture whose profile cannot be used are taken for sRGB.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

_CLOSE = 2  # of 255; a profile that moves no colour further is sRGB in other words, or rounded
_SPACES = {"RGB": ("RGB",), "L": ("GRAY", "RGB"), "CMYK": ("CMYK",)}  # mode -> colour spaces of its profiles
_MOST_BYTES = 1 << 22


class UnusableProfile(ValueError):
    """A profile that cannot be read, or is not of the picture's kind."""


def profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile that came with a picture."""
    return image.info.get("icc_profile") or None


def colour_mode(image: Image.Image) -> str:
    """L, RGB or CMYK: what the colours of a picture are, whatever else it has."""
    if image.mode.startswith("I") or image.mode in ("1", "L", "LA", "La"):
        return "L"
    return "CMYK" if image.mode == "CMYK" else "RGB"


def profile_fault(image: Image.Image) -> str | None:
    """Why the profile of a picture cannot be used; None if it can, or if there is none."""
    profile = profile_of(image)
    try:
        _ = profile and _to_srgb(profile, colour_mode(image))
    except UnusableProfile as error:
        return str(error)
    return None


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture of mode L, RGB or CMYK -> RGB in sRGB; the very object if it is that already.

    Args:
        image: its numbers as they are in the file.
        profile: of `profile_of`.
    """
    transform = _usable(profile, image.mode)
    if transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    return _apply(transform, image)


def pixels_to_srgb(pixels: np.ndarray, mode: str, profile: bytes | None) -> np.ndarray:
    """`to_srgb` of uint8 (H, W, 3); of a picture of mode L, in it three times the same."""
    if _usable(profile, mode) is None:
        return pixels
    return np.array(to_srgb(Image.fromarray(pixels[..., 0] if mode == "L" else pixels), profile))


def from_srgb(image: Image.Image, profile: bytes | None, mode: str) -> Image.Image:
    """A picture in sRGB, mode RGB -> the numbers that a picture of mode L or RGB with that profile has for it.

    Colours that the profile cannot hold are brought to the nearest that it can.
    """
    if profile is None or _usable(profile, mode) is None:
        return image.convert(mode)
    return _apply(_from_srgb(profile, mode), image).convert(mode)


def _apply(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    mode = transform.input_mode
    found = ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), transform)
    assert found is not None  # which it is only if asked to change the picture in place
    found.info.pop("icc_profile", None)
    return found


def _usable(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way to sRGB; None if there is nothing to do, or nothing that can be done."""
    try:
        return _to_srgb(profile, mode) if profile else None
    except UnusableProfile:
        return None


def _open(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsProfile, str]:
    """The profile, and the mode of the pictures that it is for: grey ones may have one of colours."""
    if len(profile) > _MOST_BYTES:
        raise UnusableProfile(f"expected a colour profile of at most {_MOST_BYTES} bytes, got {len(profile)}")
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ImageCms.PyCMSError) as error:
        raise UnusableProfile(f"expected a colour profile that can be read: {error}") from error
    space = opened.profile.xcolor_space.strip()
    if space not in _SPACES[mode]:
        raise UnusableProfile(f"expected a colour profile for a picture of mode {mode}, got one of {space}")
    return opened, "L" if space == "GRAY" else space


def _build(
    source: ImageCms.ImageCmsProfile, target: ImageCms.ImageCmsProfile, modes: tuple[str, str]
) -> ImageCms.ImageCmsTransform:
    try:
        return ImageCms.buildTransform(source, target, *modes)
    except ImageCms.PyCMSError as error:
        raise UnusableProfile(f"expected a colour profile that can be used: {error}") from error


@lru_cache(maxsize=16)  # building one takes 10 ms, and a data set has few
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way to sRGB of pictures of a mode; None if they are that already."""
    opened, mode = _open(profile, mode)
    transform = _build(opened, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), (mode, "RGB"))
    return None if mode != "CMYK" and _is_srgb(transform) else transform


@lru_cache(maxsize=16)
def _from_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    opened, mode = _open(profile, mode)
    return _build(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), opened, ("RGB", mode))


def _is_srgb(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether none of 5832 colours is moved by more than rounding may."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * 3), axis=-1).reshape(len(levels), -1, 3)
    asked = Image.fromarray(grid).convert(transform.input_mode)
    found = np.asarray(_apply(transform, asked)).astype(int)
    return bool(np.abs(found - np.asarray(asked.convert("RGB"))).max() <= _CLOSE)
