"""Damaged image files through the whole decoder, for test_corpus.py: python mutations.py COUNT

COUNT files of each format, as the image of a sample and then as its mask. Prints the name of each before it is
decoded, so that a crash leaves its name, and at last a line of JSON: how often each outcome came, and what was neither
a well-formed sample nor a ValueError that names shard and key.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules import DecoderOptions, MaskOptions
from datamodules.decode.mask_sources import AlphaMask, FileMask, LabelMap
from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.shards.shard_set import RawSample

SIZE = (24, 16)
PREFIX = "s.tar: sample 'k': "


def picture(mode: str = "RGB") -> Image.Image:
    """A photo-like picture of 61 x 47 pixels: smooth, with some noise."""
    y, x = np.mgrid[0:47, 0:61]
    noise = np.random.default_rng(1).integers(0, 40, (47, 61, 3))
    rgb = Image.fromarray((np.stack([3 * x, 4 * y, 2 * x + y], axis=-1) + noise).clip(0, 255).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    if mode in ("RGBA", "LA"):
        rgb.putalpha(Image.fromarray((4 * x).clip(0, 255).astype(np.uint8)))
    return rgb.convert(mode)


def save(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    picture(mode).save(file, kind, **options)
    return file.getvalue()


def bases() -> dict[str, list[bytes]]:
    """Clean files of each format, of its modes and kinds."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    frames: dict[str, Any] = {"save_all": True, "append_images": [picture().rotate(90), picture().rotate(180)]}
    return {
        "JPEG": [
            save("JPEG", exif=exif),
            save("JPEG", progressive=True, comment=b"comment", icc_profile=bytes(300)),
            save("JPEG", "CMYK"),
            save("JPEG", "L", restart_marker_blocks=2),
        ],
        "PNG": [
            save("PNG", exif=exif),
            save("PNG", "I;16"),
            save("PNG", "P", transparency=3),
            save("PNG", "RGBA", icc_profile=bytes(300)),
            save("PNG", "LA"),
            save("PNG", "1"),
            save("PNG", **frames),
        ],
        "WEBP": [
            save("WEBP", exif=exif),
            save("WEBP", lossless=True),
            save("WEBP", "RGBA"),
            save("WEBP", **frames),
        ],
    }


# Ways to damage a file


def flip_bits(data: bytes, generator: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for bit in generator.integers(0, 8 * len(data), generator.integers(1, 9)).tolist():
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def cut(data: bytes, generator: np.random.Generator) -> bytes:
    return data[: generator.integers(0, len(data))]


def zero_run(data: bytes, generator: np.random.Generator) -> bytes:
    start, length = generator.integers(0, len(data)), int(generator.integers(1, 100))
    return data[:start] + bytes(length) + data[start + length :]


def swap_pieces(data: bytes, generator: np.random.Generator) -> bytes:
    """Two chunks or segments change places, or one is gone, or doubled."""
    head, *parts = pieces(data)
    first, second = generator.integers(0, len(parts), 2).tolist()
    way = generator.integers(0, 3)
    if way == 0:
        parts[first], parts[second] = parts[second], parts[first]
    else:
        parts[first : first + 1] = [parts[first]] * (0 if way == 1 else 2)
    return head + b"".join(parts)


def edit_header(data: bytes, generator: np.random.Generator) -> bytes:
    """Up to three bytes of what comes before the pixels; a PNG's checksum fits them."""
    png = data.startswith(b"\x89PNG")
    low, high = (16, 29) if png else (2, max(64, data.find(b"\xff\xda")))
    changed = bytearray(data)
    for at in generator.integers(low, high, generator.integers(1, 4)).tolist():
        changed[at] = generator.choice([0, 1, 2, 4, 127, 128, 255, generator.integers(0, 256)])
    if png:
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    return bytes(changed)


DAMAGES: list[Callable[[bytes, np.random.Generator], bytes]] = [flip_bits, cut, zero_run, swap_pieces, edit_header]


def pieces(data: bytes) -> list[bytes]:
    """A file as its head and its chunks (PNG, WEBP) or segments (JPEG); the pieces joined are the file."""
    if data.startswith(b"\x89PNG"):
        at, order, extra = 8, ">I", 12
    elif data.startswith(b"RIFF"):
        at, order, extra = 12, "<I", 8
    else:
        at, order, extra = 2, "", 2
    found = [data[:at]]
    while at < len(data):
        if order:
            length = struct.unpack_from(order, data, at + (4 if order == "<I" else 0))[0]
            length += extra + (length % 2 if order == "<I" else 0)
        elif data[at + 1] == 0xDA:
            length = len(data)
        else:
            length = extra + struct.unpack_from(">H", data, at + 2)[0]
        found.append(data[at : at + length])
        at += length
    return found


def mutant(clean: list[bytes], number: int) -> bytes:
    """Damaged file `number` of the clean ones: every file in every way, in turn."""
    generator = np.random.default_rng(number)
    return DAMAGES[number // len(clean) % len(DAMAGES)](clean[number % len(clean)], generator)


# Outcomes


def is_well_formed(sample: dict[str, Any]) -> bool:
    image, mask = sample["image"], sample.get("mask")
    good_mask = mask is None or (mask.dtype == torch.bool and mask.shape == (1, *SIZE))
    return image.dtype == torch.uint8 and image.shape == (3, *SIZE) and good_mask


def outcome(decoder: SampleDecoder, fields: dict[str, bytes]) -> str:
    """`sample`, `refused`, or what is wrong."""
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            sample = decoder(RawSample("s.tar", "k", fields, 5))
    except ValueError as error:
        return "refused" if len(str(error)) > len(PREFIX) and str(error).startswith(PREFIX) else f"message {error}"
    except BaseException as error:
        return f"raised {error!r}"
    if warned:
        return f"warned {warned[0].message}"
    return "sample" if is_well_formed(sample) else "malformed sample"


def main(count: int) -> None:
    torch.set_num_threads(1)
    sources = [FileMask(), LabelMap([1, 2]), AlphaMask()]
    decoder = SampleDecoder(
        image_size=SIZE,
        seed=0,
        augment=True,
        options=DecoderOptions(max_pixels=1_000_000),
        masks=MaskOptions(sources=sources),
    )
    clean = save("PNG")
    found: dict[str, Any] = {"outcomes": {}, "wrong": [], "slowest": 0.0}
    for kind, files in bases().items():
        counts: Counter[str] = Counter()
        for number in range(count):
            data = mutant(files, number)
            mask = f"mask.{kind.lower()}" if kind != "PNG" or number % 2 else "label.png"
            for fields in ({kind.lower(): data}, {"png": clean, mask: data}):
                name = f"{kind} {number} as {', '.join(fields)}"
                print(name, flush=True)  # noqa: T201
                begin = time.perf_counter()
                result = outcome(decoder, fields)
                found["slowest"] = max(found["slowest"], time.perf_counter() - begin)
                counts[result if result in ("sample", "refused") else "wrong"] += 1
                if result not in ("sample", "refused"):
                    found["wrong"].append(f"{name}: {result}")
        found["outcomes"][kind] = counts
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]))
