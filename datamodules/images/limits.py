"""What a file may make its decoder do: JPEGs and PNGs whose decoding takes far longer than their size lets expect.

The number of pixels is bounded where a file is opened. But every scan of a JPEG goes through all of its pixels, and a
file of half a megabyte can have hundreds; and Pillow reads segments and chunks one by one in Python, of which empty
ones take 12 bytes each. Zlib's bombs and overlong EXIF are bounded by Pillow itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

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
