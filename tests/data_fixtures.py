"""Small photos and shards for the tests of the data floor, made with Pillow in a temporary folder."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules import DecoderOptions, LoadingOptions, MaskOptions, OrderOptions
from datamodules.decode import SampleDecoder
from datamodules.make_shards import make_shards
from inpaint_module.masks import MaskGenerator
from inpaint_module.randomness import draw, integers


def photo(number: int, width: int = 48, height: int = 40) -> Image.Image:
    """A smooth RGB picture, another for each number."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * (3 + number) + y * channel * 2 + 40 * number) % 256 for channel in (1, 2, 3)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """An image file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif_turned(orientation: int = 6) -> Image.Exif:
    """EXIF which says how the camera was held; 6 is on its side."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of these members, in this order."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def photo_folder(folder: Path, count: int) -> Path:
    """A folder of photos p000.jpg ..., each with a caption."""
    folder.mkdir(parents=True)
    for number in range(count):
        photo(number).save(folder / f"p{number:03d}.jpg", quality=90)
        (folder / f"p{number:03d}.txt").write_text(f"photo {number}\n")
    return folder


def photo_shards(folder: Path, count: int, per_shard: int = 4) -> Path:
    """A shard folder of `count` photos."""
    make_shards(photo_folder(folder / "photos", count), folder / "shards", samples_per_shard=per_shard)
    return folder / "shards"


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of a folder's files by their names."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


_PARTS: dict[str, Any] = {
    "order": OrderOptions,
    "decoder": DecoderOptions,
    "masks": MaskOptions,
    "loading": LoadingOptions,
}


def in_parts(**options: Any) -> dict[str, Any]:
    """Arguments of the data module, those of its parts in them: `window=2` becomes `order=OrderOptions(window=2)`."""
    for part, kind in _PARTS.items():
        own = {each.name: options.pop(each.name) for each in fields(kind) if each.name in options}
        if own:
            options[part] = kind(**own)
    return options


def sample_decoder(**options: Any) -> SampleDecoder:
    """Of 16 x 16 pixels, without crops, unless `options` or those of a part say otherwise."""
    chosen = in_parts(**{"image_size": (16, 16), "seed": 0, "augment": False, **options})
    return SampleDecoder(**{"options" if name == "decoder" else name: value for name, value in chosen.items()})


class Halves(MaskGenerator):
    """Everything left of a random column."""

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        column = integers(draw(keys, 1), 1, width)[:, :, None, None]
        return (torch.arange(width, device=keys.device) < column).expand(len(keys), 1, height, width)
