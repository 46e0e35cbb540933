"""Formats of image files: how much work a header asks for, JPEGs decoded no further than needed, colours in sRGB.

Every scan of a JPEG goes through all of its pixels, and a file of half a megabyte can have hundreds; Pillow reads
segments and chunks one by one in Python, of which empty ones take 12 bytes each. Of a photo, most of the time goes into
its Huffman codes, which are read from the first to the last that is wanted: nothing but the end can be left out.

Pictures of any ICC profile become sRGB by Pillow's ImageCms with its default intent: the numbers are those of
`ImageCms.profileToProfile`. PNG's gAMA, cHRM and cICP, and EXIF's mark of Adobe RGB, Pillow does not apply, and neither
do we. The numbers of a picture whose profile cannot be used are taken for sRGB.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageCms

MOST_SCANS = 32  # cameras and encoders write up to 20
_PARTS = 1000  # segments or chunks beyond this many must be of 1 KiB on average
_PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # of a JPEG, but for restarts: neither filled up nor stuffed
_FRAMES = (0xC0, 0xC1)  # baseline and extended sequential, Huffman coded
_SCAN, _END = 0xDA, b"\xff\xd9"


def check_work(data: bytes) -> None:
    """Refuse a JPEG or PNG that is much work for its size; of its pixels none is decoded.

    Raises:
        ValueError: if it has more scans than 32, or too many segments or chunks.
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(_PNG):
        for parts, _ in enumerate(_png_chunks(data), 1):
            _check_parts(data, parts)


def _check_parts(data: bytes, parts: int) -> None:
    if parts > (most := _PARTS + len(data) // 1024):
        raise ValueError(
            f"expected at most {most} parts in an image file of {len(data)} bytes, got more; "
            "save it again with another program"
        )


def _check_jpeg(data: bytes) -> None:
    """Walk over the segments of the first image; of a JPEG that has one scan, as most, only over its header."""
    scans = components = 0
    for parts, (marker, at) in enumerate(_jpeg_segments(data), 1):
        _check_parts(data, parts)
        if marker in _FRAMES:
            components = data[at + 7] if at + 7 < len(data) else 0
        if marker == _SCAN:
            scans += 1
            if at + 2 < len(data) and data[at + 2] == components:
                return
        if scans > MOST_SCANS:
            raise ValueError(
                f"expected a JPEG of at most {MOST_SCANS} scans, got more, each of which goes through all of its "
                "pixels; save it again with another program"
            )


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The marker of each segment, and where its length stands."""
    at = 2
    while (found := _MARKER.search(data, at)) and found[0] != _END:
        at = found.end()
        yield data[at - 1], at
        at += int.from_bytes(data[at : at + 2], "big")


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """The names of the chunks that are read for the first picture."""
    at, seen_pixels = len(_PNG), False
    while at + 8 <= len(data):
        name = data[at + 4 : at + 8]
        if name == b"IEND" or (seen_pixels and name in (b"fcTL", b"fdAT")):
            return
        yield name
        seen_pixels |= name == b"IDAT"
        at += 12 + int.from_bytes(data[at : at + 4], "big")


_OTHER_FRAMES = (0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_COLOURS = ("YCbCr", "Gray", "RGB")  # the others are converted by Pillow, whose CMYK is not libjpeg's


class Frame(NamedTuple):
    """`offset` of the two bytes that hold the height, in `data`; `unit`, the rows of a coded block row."""

    offset: int
    height: int
    unit: int
    components: int


def reduction(factor: float, gap: float) -> int:
    """By what to reduce a JPEG while it is decoded: 1, 2, 4 or 8.

    The inverse cosine transform can give every second, fourth or eighth pixel, but cuts off fine detail more sharply
    than an antialiased resize. That shows unless the resize has still to shrink by `gap`. Against the full decode, in
    842 crops of 281 photos at three sizes, chroma coarse from that gap on, PSNR was at a gap of 2: 42 dB or more, 61
    on average; at 1.5: 37 and 56; at 1: 31 and 46.

    Args:
        factor: how many pixels of the photo become one, along a side.
        gap: at least 1.
    """
    return next((by for by in (8, 4, 2) if factor >= by * gap), 1)


def read_frame(data: bytes) -> Frame | None:
    """What the header of a JPEG says if it is sequential and has all components in one scan, else None."""
    at, frame = 2, None
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _OTHER_FRAMES or marker < 0xC0:
            return None
        if marker in _FRAMES:
            count = data[at + 9]
            unit = 8 * max(data[at + 11 + 3 * number] >> 4 for number in range(count)) if count > 1 else 8
            frame = Frame(at + 5, int.from_bytes(data[at + 5 : at + 7], "big"), unit, count)
        if marker == _SCAN:
            return frame if frame and data[at + 4] == frame.components else None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


class Cut(NamedTuple):
    """A file, and the rows that it announces; `height` is None of one that was not cut."""

    data: bytes
    height: int | None = None


def cut_below(data: bytes, rows: int) -> Cut:
    """The same JPEG, announced as one of about `rows` rows: all of them come out as before, bit for bit.

    A file without its end mark stays as it is, so that the decoder refuses it wherever the crop lies; so does one that
    is progressive or has several scans.
    """
    try:
        frame = read_frame(data) if data.endswith(_END) else None
    except IndexError:  # cut short inside its header
        return Cut(data)
    if frame is None:
        return Cut(data)
    height = (-(-rows // frame.unit) + 1) * frame.unit  # one block row more: chroma is interpolated over its border
    if 10 * height > 9 * frame.height:  # a copy of the file costs more than that saves
        return Cut(data)
    return Cut(b"".join((data[: frame.offset], height.to_bytes(2, "big"), data[frame.offset + 2 :])), height)


def read_pixels(
    data: bytes, size: tuple[int, int], scale: int, *, coarse: bool = False, strict: bool = True
) -> np.ndarray | None:
    """The pixels of a clean JPEG, uint8 (h, w, 3), RGB: unless `coarse` Pillow's very bits, in two thirds of its time.

    None where Pillow is to decide: damaged files, CMYK, headers of two meanings.

    Args:
        data: the file.
        size: (width, height) that Pillow read in its header.
        scale: 1, 2, 4 or 8, how many pixels become one along a side.
        coarse: repeat the values of a smaller chroma plane instead of interpolating them.
        strict: take nothing from a file that libjpeg only warns of.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != size or colours not in _COLOURS:
            return None
        least = {"min_height": -(-height // scale), "min_width": -(-width // scale), "min_factor": scale}
        return simplejpeg.decode_jpeg(data, "RGB", fastupsample=coarse, strict=strict, **least)
    except ValueError:
        return None


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
    """A picture of mode L, RGB or CMYK, as in its file -> RGB in sRGB; the very object if it is that already."""
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
    """A picture in sRGB, mode RGB -> the nearest numbers of a picture of mode L or RGB with that profile."""
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


def _build(source: Any, target: Any, before: str, after: str) -> ImageCms.ImageCmsTransform:
    try:
        return ImageCms.buildTransform(source, target, before, after)
    except ImageCms.PyCMSError as error:
        raise UnusableProfile(f"expected a colour profile that can be used: {error}") from error


@lru_cache(maxsize=16)  # building one takes 10 ms, and a data set has few
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way to sRGB of pictures of a mode; None if they are that already."""
    opened, mode = _open(profile, mode)
    transform = _build(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    return None if mode != "CMYK" and _is_srgb(transform) else transform


@lru_cache(maxsize=16)
def _from_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    opened, mode = _open(profile, mode)
    return _build(ImageCms.createProfile("sRGB"), opened, "RGB", mode)


def _is_srgb(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether none of 5832 colours is moved by more than rounding may."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * 3), axis=-1).reshape(len(levels), -1, 3)
    asked = Image.fromarray(grid).convert(transform.input_mode)
    found = np.asarray(_apply(transform, asked)).astype(int)
    return bool(np.abs(found - np.asarray(asked.convert("RGB"))).max() <= _CLOSE)
