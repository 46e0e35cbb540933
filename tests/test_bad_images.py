"""Bad images: every damaged or lying file is refused by name, and none crashes."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from data_fixtures import encode, photo, sample_decoder

from datamodules.shards.shard_set import RawSample


def decode(data: bytes, **options: object) -> dict[str, Any]:
    decoder = sample_decoder(**options)
    return decoder(RawSample("s.tar", "k", {"png": data}, 0))


def bomb() -> bytes:
    """A PNG whose header announces 20000 x 20000 pixels and that holds none."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
        (encode(photo(1), "GIF"), "cannot identify"),
        (encode(photo(1))[:200], "."),
        (encode(photo(1, 200, 200), "JPEG")[:1500], "truncated"),
        (bomb(), "."),
    ],
)
def test_bad_images_are_named(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"s\.tar: sample 'k': .*{message}"):
        decode(data)


def test_too_many_pixels_by_the_header() -> None:
    with pytest.raises(ValueError, match=r"expected 1 to 1919 pixels, got 48 x 40"):
        decode(encode(photo(1)), max_pixels=1919)


def outcome(data: bytes) -> str:
    """The shape of the decoded image, or the message of its refusal."""
    try:
        return str(tuple(decode(data)["image"].shape))
    except ValueError as error:
        return str(error)


def test_mutated_files_never_give_another_error() -> None:
    generator = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP"):
        clean = encode(photo(1), kind)
        for _ in range(400):
            data = bytearray(clean)
            for at in generator.integers(0, len(data), 6):
                data[at] = generator.integers(0, 256)
            assert outcome(bytes(data)).startswith(("(3, 16, 16)", "s.tar: sample 'k': "))
