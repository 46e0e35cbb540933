"""What a file's header tells before anything is decoded: what takes too long, and shortcuts for JPEGs.

The number of pixels is bounded where a file is opened. But every scan of a JPEG goes through all of its pixels, and a
file of half a megabyte can have hundreds; and Pillow reads segments and chunks one by one in Python, of which empty
ones take 12 bytes each. Zlib's bombs and overlong EXIF are bounded by Pillow itself.

Of a photo of 1 to 2 megapixels, most of the time goes into its Huffman codes, which have to be read from the first to
the last that is wanted, so that nothing but the end can be left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg

MOST_SCANS = 32  # cameras and encoders write up to 20
_PARTS = 1000  # segments or chunks beyond this many must be of 1 KiB on average
_PNG = b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # of a JPEG, but for restarts: neither filled up nor stuffed
_SEQUENTIAL = (0xC0, 0xC1)
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def check_work(data: bytes) -> None:
    """Refuse a JPEG or PNG that is much work for its size; of its pixels none is decoded.

    Raises:
        ValueError: if it has more scans than 32, or too many segments or chunks.
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(_PNG):
        _check_parts(data, sum(1 for _ in zip(_png_chunks(data), range(_most_parts(data) + 1), strict=False)))


def _most_parts(data: bytes) -> int:
    return _PARTS + len(data) // 1024


def _check_parts(data: bytes, parts: int) -> None:
    if parts > _most_parts(data):
        raise ValueError(
            f"expected at most {_most_parts(data)} parts in an image file of {len(data)} bytes, got more; "
            "save it again with another program"
        )


def _check_jpeg(data: bytes) -> None:
    """Walk over the segments of the first image; of a JPEG that has one scan, as most, only over its header."""
    scans = components = 0
    for parts, (marker, at) in enumerate(_jpeg_segments(data), 1):
        _check_parts(data, parts)
        if marker in _SEQUENTIAL:
            components = data[at + 7] if at + 7 < len(data) else 0
        if marker == _START_OF_SCAN:
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
    while (found := _MARKER.search(data, at)) and data[found.start() + 1] != _END_OF_IMAGE:
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


_FRAMES = (0xC0, 0xC1)  # baseline and extended sequential, Huffman coded
_OTHER_FRAMES = (0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_COLOURS = ("YCbCr", "Gray", "RGB")  # the others are converted by Pillow, whose CMYK is not libjpeg's
_SCAN = 0xDA
_END = b"\xff\xd9"


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
    """The pixels of a clean JPEG: unless `coarse` the very bits that Pillow gives, in two thirds of its time.

    Args:
        data: the file.
        size: (width, height) that Pillow read in its header.
        scale: 1, 2, 4 or 8, how many pixels become one along a side.
        coarse: repeat the values of a smaller chroma plane instead of interpolating them.
        strict: take nothing from a file that libjpeg only warns of.

    Returns:
        uint8 (h, w, 3), RGB; or None where Pillow is to decide: damaged files, CMYK, headers of two meanings.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != size or colours not in _COLOURS:
            return None
        least = {"min_height": -(-height // scale), "min_width": -(-width // scale), "min_factor": scale}
        return simplejpeg.decode_jpeg(data, "RGB", fastupsample=coarse, strict=strict, **least)
    except ValueError:
        return None
