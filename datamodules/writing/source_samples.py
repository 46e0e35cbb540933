"""One source on disk -> the fields of its sample: checked, shrunk, with what lies beside it."""

from __future__ import annotations

import io
import json
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from datamodules.images.image_sizes import image_size
from datamodules.images.reading import FORMATS, open_image, to_rgb, upright, upright_size
from datamodules.own_masks.mask_sources import read_labels
from datamodules.samples.captions import parse_caption
from datamodules.shards.tar_index import LABEL_FIELDS, MASK_FIELDS
from datamodules.writing.source_lists import BESIDE, Source

_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
_MAX_CAPTION_BYTES = 1 << 20


class Resize(NamedTuple):
    """Bring the short side, or the longest, down to so many pixels; quality 1..100 for JPEG and WEBP."""

    short_side: int | None = None
    max_side: int | None = None
    quality: int = 92

    def scale(self, width: int, height: int) -> float:
        """The factor for an image of this size, at most 1."""
        short = self.short_side / min(width, height) if self.short_side else 1.0
        longest = self.max_side / max(width, height) if self.max_side else 1.0
        return min(1.0, short, longest)


class EncodedSample(NamedTuple):
    """A sample as it goes into a shard; `size` is the upright width and height of its image in pixels."""

    key: str
    fields: dict[str, bytes]
    size: tuple[int, int]


def _image_bytes(data: bytes, field: str, resize: Resize, max_pixels: int) -> bytes:
    """Check that an image decodes; re-encode it, upright and in RGB, only if it has to shrink."""
    image = open_image(data, max_pixels)
    image.load()
    scale = resize.scale(*image.size)
    if scale == 1.0:
        return data
    image = to_rgb(upright(image))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, _FORMATS[field], quality=resize.quality)
    return file.getvalue()


def _sized_json(data: bytes, size: tuple[int, int]) -> bytes:
    """Add the width and height to which polygons refer, unless the json says them itself."""
    return json.dumps({"width": size[0], "height": size[1], **json.loads(data)}).encode()


def _check_beside(fields: dict[str, bytes], max_pixels: int) -> None:
    """Decode what lies beside an image."""
    for name in MASK_FIELDS:
        if name in fields:
            open_image(fields[name], max_pixels).load()
    for name in LABEL_FIELDS:
        if name in fields:
            read_labels(fields[name], max_pixels)
    parse_caption(fields, _MAX_CAPTION_BYTES)
    if "json" in fields and not isinstance(json.loads(fields["json"]), dict):
        raise ValueError("expected an object in json")


def _read_beside(source: Source) -> dict[str, bytes]:
    """What lies beside an image; what a table gives wins, and its json columns join a json file."""
    beside = {name: source.path.with_suffix(f".{name}") for name in BESIDE}
    if source.mask is not None:
        beside = {name: path for name, path in beside.items() if name not in MASK_FIELDS}
    fields = {name: path.read_bytes() for name, path in beside.items() if path.exists()}
    if source.mask is not None:
        fields[f"mask{source.mask.suffix.lower()}"] = source.mask.read_bytes()
    for name, data in source.given:
        joined = name == "json" and name in fields
        fields[name] = json.dumps({**json.loads(fields[name]), **json.loads(data)}).encode() if joined else data
    return fields


def read_source(source: Source, resize: Resize, max_pixels: int) -> EncodedSample:
    """The sample of one source; a shrunk image's json learns the size that it was written for.

    Raises:
        ValueError: naming the file, and its row in a table, if the image or what lies beside it cannot be used.
    """
    field = source.path.suffix[1:].lower()
    try:
        fields = _read_beside(source)
        _check_beside(fields, max_pixels)
        data = source.path.read_bytes()
        image = _image_bytes(data, field, resize, max_pixels)
        if "json" in fields and image is not data:
            fields["json"] = _sized_json(fields["json"], upright_size(open_image(data, max_pixels)))
        return EncodedSample(source.key, {field: image, **fields}, image_size(image))
    except UnidentifiedImageError as error:  # its own text ends in a memory address
        raise ValueError(f"{source}: cannot identify an image file as {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow raises many kinds on damaged files, SyntaxError among them
        raise ValueError(f"{source}: {error}") from error


def try_source(source: Source, resize: Resize, max_pixels: int) -> EncodedSample | str:
    """`read_source`, or the reason why the source cannot be used: for worker processes."""
    try:
        return read_source(source, resize, max_pixels)
    except ValueError as error:
        return str(error)
