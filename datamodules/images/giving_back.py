"""Fills put into a picture as its file has it: its colour profile, transparency and bit depth are given back."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from datamodules.images.conversion import CMYK, stored_picture
from datamodules.images.profiles import UnusableProfile, colour_mode, from_srgb, profile_of
from datamodules.images.reading import has_alpha, to_rgb, upright

ONE_WAY = "with a colour profile for reading only: converted to sRGB"
_COLOUR_CHUNKS = (b"gAMA", b"cHRM", b"cICP", b"sRGB")


class GivenPicture(NamedTuple):
    """A picture, upright.

    Attributes:
        image: its pixels as the file has them, of mode L, LA, RGB, RGBA or I;16.
        rgb: the same as training reads it, uint8 (H, W, 3) in sRGB, transparency on white.
        profile: the file's colour profile.
        chunks: what else a PNG says of its colours, name and content.
        transparent: the grey of 16 bits that is transparent.
        notes: kinds of an account.
    """

    image: Image.Image
    rgb: np.ndarray
    profile: bytes | None
    chunks: tuple[tuple[bytes, bytes], ...]
    transparent: int | None
    notes: tuple[str, ...]


def read_given(path: Path, max_pixels: int) -> GivenPicture:
    """A picture of any format that packing takes.

    Raises:
        ValueError: naming the file.
    """
    try:
        return _read(path.read_bytes(), path.name, max_pixels)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or 'cannot be read as a picture'}") from error
    except Exception as error:  # Pillow raises many kinds on damaged files, SyntaxError among them
        raise ValueError(f"{path}: {error}") from error


def _read(data: bytes, name: str, max_pixels: int) -> GivenPicture:
    stored = stored_picture(data, name, max_pixels)
    image = upright(stored.image)
    profile, notes = profile_of(image), stored.notes
    rgb = np.array(to_rgb(image))
    if image.mode == "CMYK" or _is_one_way(image):
        notes += () if CMYK in notes else (ONE_WAY,)
        return GivenPicture(_in_srgb(image), rgb, None, (), None, notes)
    key = image.info.get("transparency") if image.mode.startswith("I") else None
    return GivenPicture(_as_it_is(image), rgb, profile, _colour_chunks(stored.data), key, notes)


def _is_one_way(image: Image.Image) -> bool:
    try:
        from_srgb(Image.new("RGB", (1, 1)), profile_of(image), colour_mode(image))
    except UnusableProfile:
        return True
    return False


def _in_srgb(image: Image.Image) -> Image.Image:
    colours = to_rgb(image, None)
    if has_alpha(image):
        colours.putalpha(image.convert("RGBA").getchannel("A"))
    return colours


def _as_it_is(image: Image.Image) -> Image.Image:
    """The same pixels in a mode that holds any fill."""
    if image.mode.startswith("I"):
        return Image.fromarray(np.asarray(image).astype(np.uint16))
    mode = colour_mode(image)
    if has_alpha(image):
        mode = {"L": "LA", "RGB": "RGBA"}[mode]
    return image if image.mode == mode else image.convert(mode)


def _colour_chunks(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    found, place = [], 8
    while data.startswith(b"\x89PNG") and (name := data[place + 4 : place + 8]) not in (b"IDAT", b""):
        length = int.from_bytes(data[place : place + 4])
        if name in _COLOUR_CHUNKS:
            found.append((name, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return tuple(found)


def filled(given: GivenPicture, fill: np.ndarray, mask: np.ndarray) -> Image.Image:
    """The picture with a fill where the mask is; all other pixels have the bits of the file.

    Args:
        given: of `read_given`.
        fill: uint8 (H, W, 3) in sRGB.
        mask: bool (H, W); what it hides becomes opaque.
    """
    pixels = np.array(given.image)
    if mask.any():
        mode = "RGB" if given.image.mode.startswith("RGB") else "L"
        colours = np.asarray(from_srgb(Image.fromarray(fill), given.profile, mode))[mask]
        if pixels.dtype == np.uint16:
            levels = colours.astype(np.uint16) * 257
            pixels[mask] = np.where(levels == given.transparent, levels ^ 1, levels)
        elif given.image.mode in ("L", "RGB"):
            pixels[mask] = colours
        else:
            pixels[mask] = np.column_stack([colours, np.full(len(colours), 255, np.uint8)])
    return Image.fromarray(pixels)


def write_png(file: BinaryIO, image: Image.Image, given: GivenPicture, maker: str) -> None:
    """Write a filled picture with what its file said of its colours.

    Args:
        file: to write to.
        image: of `filled`.
        given: of `read_given`.
        maker: goes into the text chunk `Software`.
    """
    words = PngImagePlugin.PngInfo()
    words.add_text("Software", maker)
    for name, content in given.chunks:
        words.add(name, content)
    more = {} if given.transparent is None else {"transparency": given.transparent}
    image.save(file, "PNG", icc_profile=given.profile, pnginfo=words, **more)
