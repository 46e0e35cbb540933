"""Files that are small, and much work to decode, are refused before they are decoded; ordinary ones are not."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from data_fixtures import encode, photo
from PIL import Image

from datamodules.decode.codecs import MOST_SCANS, check_work
from datamodules.decode.mask_sources import FileMask, MaskRequest
from datamodules.decode.reading import image_size, open_image
from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.shards.shard_set import RawSample


def many_scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG whose last scan, which refines a bit, comes `count` times more."""
    data = encode(Image.effect_noise((width, height), 40), "JPEG", progressive=True, quality=60)
    begin = data.rfind(b"\xff\xda")
    return data[:-2] + data[begin:-2] * count + data[-2:]


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def small_png(before: int = 0, pixels: int = 1, after: int = 0) -> bytes:
    """A PNG of 4 x 4 pixels with empty chunks before and after its pixels, and these in so many pieces."""
    packed = zlib.compress(bytes(13 * 4))
    pieces = [(b"IDAT", packed), *[(b"IDAT", b"")] * (pixels - 1)]
    header = (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    return png_of([header, *[(b"tEXt", b"a\0")] * before, *pieces, *[(b"abCd", b"")] * after, (b"IEND", b"")])


def test_a_jpeg_of_300_scans_is_refused_at_once() -> None:
    data = many_scans(800, 800, 300)
    decoder = SampleDecoder(image_size=(16, 16), seed=0, augment=False)
    for field in ("jpg", "mask.jpg"):
        raw = RawSample("s", "k", {"jpg": encode(photo(1), "JPEG"), field: data}, 0)
        with pytest.raises(ValueError, match=rf"'k': (mask: )?expected a JPEG of at most {MOST_SCANS} scans, got more"):
            decoder(raw)
    assert image_size(data) == (0, 0)


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 1}, {"quality": 100}, {}])
def test_ordinary_jpegs_are_opened(options: dict[str, object]) -> None:
    """Also with a thumbnail of many scans in EXIF, and after what looks like scans behind the picture's end."""
    exif = Image.Exif()
    exif[0x010E] = b"\xff\xda" * 100
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, "JPEG", exif=exif, **options) + b"\xff\xda\0\x02" * 100
    check_work(data)
    assert np.asarray(open_image(data, 10_000)).shape == (64, 64, 3)


def test_as_many_scans_as_allowed() -> None:
    data = many_scans(32, 32, 0)
    written = sum(data[at : at + 2] == b"\xff\xda" for at in range(len(data)))
    check_work(many_scans(32, 32, MOST_SCANS - written))
    with pytest.raises(ValueError, match="scans"):
        check_work(many_scans(32, 32, MOST_SCANS - written + 1))


@pytest.mark.parametrize("where", ["before", "pixels", "after"])
def test_a_flood_of_chunks_is_refused(where: str) -> None:
    assert np.asarray(open_image(small_png(**{where: 900}), 100)).shape == (4, 4, 3)
    with pytest.raises(ValueError, match=r"expected at most \d+ parts in an image file"):
        open_image(small_png(**{where: 100_000}), 100)


def test_a_flood_of_segments_is_refused() -> None:
    data = encode(photo(1), "JPEG")
    with pytest.raises(ValueError, match=r"expected at most \d+ parts in an image file"):
        open_image(data[:2] + b"\xff\xe5\0\x02" * 100_000 + data[2:], 10_000)


def test_animations_of_many_small_frames_are_opened() -> None:
    frames = [Image.new("P", (4, 4), number % 2) for number in range(1500)]
    file = io.BytesIO()
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    check_work(file.getvalue())


@pytest.mark.parametrize("chunk", [b"zTXt", b"iCCP"])
def test_what_unpacks_to_much_is_refused(chunk: bytes) -> None:
    """By Pillow, and by name."""
    packed = b"a\0\0" + zlib.compress(bytes(3 << 20))
    header = (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    data = png_of([header, (chunk, packed), (b"IDAT", zlib.compress(bytes(5 * 4))), (b"IEND", b"")])
    with pytest.raises(ValueError, match="Decompressed data too large"):
        FileMask()(MaskRequest({"mask.png": data}, (4, 4)))
