"""JPEGs of 1 to 2 megapixels with the detail of real photos: mosaics of the embedded ones."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image

from datamodules.decode.reading import image_bytes, open_image, to_rgb
from datamodules.shards.shard_specs import open_shards

TILE = 256


@cache
def tiles(count: int, shards: str = "embedded:train") -> list[Image.Image]:
    """The middle squares of the first `count` photos, of 256 pixels."""
    photos = open_shards(shards)
    images = [to_rgb(open_image(image_bytes(photos.read(number).fields), 10**7)) for number in range(count)]
    corners = [((image.width - TILE) // 2, (image.height - TILE) // 2) for image in images]
    return [i.crop((x, y, x + TILE, y + TILE)) for i, (x, y) in zip(images, corners, strict=True)]


def mosaic(number: int, width: int = 1536, height: int = 1024, photos: int = 166) -> Image.Image:
    """A picture of photos side by side, other ones for each number."""
    order = np.random.default_rng(number).permutation(photos)
    image = Image.new("RGB", (width, height))
    places = [(x, y) for y in range(0, height, TILE) for x in range(0, width, TILE)]
    for place, (x, y) in enumerate(places):
        image.paste(tiles(photos)[order[place % photos]], (x, y))
    return image


def as_jpeg(image: Image.Image, quality: int, **options: object) -> bytes:
    """A JPEG file's bytes."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, **options)
    return file.getvalue()
