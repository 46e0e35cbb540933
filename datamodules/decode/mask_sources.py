"""Masks that come with the data, one class for each way to store them; 1 = inpaint.

A source finds the mask of one sample as a grey image of the upright photo, at any resolution. It then goes through the
photo's own crop and flip and is cut above one half, so that soft edges and JPEG noise (.9 to .999) do no harm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from datamodules.decode.mask_files import mask_turn, read_mask, turned
from datamodules.decode.reading import Turn, has_alpha, open_image, read_turn, upright
from datamodules.shards.tar_index import IMAGE_FIELDS, LABEL_FIELDS, MASK_FIELDS, TARGET_FIELDS

_GREY_STEPS = {2: 85, 4: 17}  # Pillow stretches grey PNGs of 2 and 4 bits to 0..255


class MaskRequest(NamedTuple):
    """What a source is given.

    `fields` are the sample's undecoded fields, `size` width and height of the upright image in pixels, `draw` a number
    in [0, 1) from (seed, position) to choose with, `max_pixels` a bound on what may be decoded, `turn` what the image's
    EXIF says, `image` the opened image where there is one.
    """

    fields: dict[str, bytes]
    size: tuple[int, int]
    draw: float = 0.0
    max_pixels: int = 50_000_000
    turn: Turn = Turn()
    image: Image.Image | None = None


class MaskSource(ABC):
    """Finds a sample's own mask. A subclass must be picklable, since it works in the loader's processes.

    `shows_hidden` is true of a source whose masks are the image's transparency: with it the decoder shows the colours
    that transparent pixels hide, instead of the background.
    """

    shows_hidden: bool = False

    @abstractmethod
    def __call__(self, request: MaskRequest) -> Image.Image | None:
        """The mask (mode L, 255 = inpaint, upright, any resolution), or None if this sample has none here.

        Raises:
            ValueError: if it is there but cannot be used; the decoder adds shard and key.
        """


def to_mask(mask: np.ndarray) -> Image.Image | None:
    """bool (H, W) -> grey image; None if nothing is masked."""
    return Image.fromarray(mask.astype(np.uint8) * 255) if mask.any() else None


def _first(fields: dict[str, bytes], names: Sequence[str]) -> bytes | None:
    return next((fields[name] for name in names if name in fields), None)


def image_bytes(fields: dict[str, bytes]) -> bytes:
    """The file of a sample's image; the index has made sure that there is one."""
    return next(fields[name] for name in IMAGE_FIELDS if name in fields)


@contextmanager
def naming(part: str) -> Iterator[None]:
    """Any error as a ValueError that names the part of the sample, its mask say."""
    try:
        yield
    except UnidentifiedImageError as error:  # its own text ends in a memory address
        raise ValueError(f"{part}: cannot identify it as a JPEG, PNG or WEBP") from error
    except Exception as error:  # Pillow raises many kinds on damaged files, SyntaxError among them
        raise ValueError(f"{part}: {error}") from error


def target_bytes(fields: dict[str, bytes]) -> bytes | None:
    """The file of the picture that a sample's image should become; None if it has none."""
    return _first(fields, TARGET_FIELDS)


class FileMask(MaskSource):
    """A picture beside the image: `mask.png`, `mask.webp`, `mask.jpg` or `mask.jpeg`, white = inpaint.

    It has the image's shape, at any resolution; `mask_files.read_mask` says how other files than grey ones are read.

    Args:
        inverted: Black = inpaint.
        transparent: Inpaint where the file is transparent, whatever colours it shows, as ComfyUI saves masks.
    """

    def __init__(self, inverted: bool = False, transparent: bool = False) -> None:
        self.inverted = inverted
        self.transparent = transparent

    def __call__(self, request: MaskRequest) -> Image.Image | None:
        """See `MaskSource`; a picture without any white is an empty mask, not a missing one."""
        data = _first(request.fields, MASK_FIELDS)
        if data is None:
            return None
        ways = {"inverted": self.inverted, "transparent": self.transparent}
        with naming("mask"):
            return read_mask(data, request.size, request.turn, request.max_pixels, **ways)


class AlphaMask(MaskSource):
    """The image's own transparency: alpha under one half = inpaint, as ComfyUI's LoadImage.

    What is hidden there must be the true picture: it is what the model learns to paint, and with this source all
    images show it. Save with a program that keeps it (WEBP has an option `exact` for that).
    An opaque image has no mask.

    Args:
        inverted: Alpha of at least one half = inpaint.
    """

    shows_hidden = True

    def __init__(self, inverted: bool = False) -> None:
        self.inverted = inverted

    def __call__(self, request: MaskRequest) -> Image.Image | None:
        """See `MaskSource`."""
        image = request.image or open_image(image_bytes(request.fields), request.max_pixels)
        if not has_alpha(image):
            return None
        alpha = upright(image).convert("RGBA").getchannel("A")
        if alpha.getextrema() == (255, 255):
            return None
        return alpha if self.inverted else ImageOps.invert(alpha)


class LabelMap(MaskSource):
    """Chosen classes of a map of class numbers: `label.png` or `seg.png`, grey of 1 to 16 bits or palette.

    A sample without a pixel of these classes has no mask.

    Args:
        ids: Class numbers to inpaint, each 0..65535; of a palette the index, not the colour.

    Raises:
        ValueError: no ids, or one out of range.
    """

    def __init__(self, ids: list[int]) -> None:
        if not ids or not all(0 <= number <= 65535 for number in ids):
            raise ValueError(f"LabelMap.ids: expected class numbers 0 to 65535, at least one, got {ids}")
        self.ids = list(ids)

    def __call__(self, request: MaskRequest) -> Image.Image | None:
        """See `MaskSource`."""
        data = _first(request.fields, LABEL_FIELDS)
        if data is None:
            return None
        labels = read_labels(data, request.max_pixels)
        chosen = np.zeros(65536, dtype=bool)
        chosen[self.ids] = True
        mask = to_mask(chosen[labels])
        own = read_turn(open_image(data, request.max_pixels))
        way = mask_turn(labels.shape[::-1], request.size, request.turn if own == Turn() else Turn())
        return None if mask is None else turned(mask, way)


def read_labels(data: bytes, max_pixels: int) -> np.ndarray:
    """A PNG of class numbers -> integers (H, W), upright.

    Raises:
        ValueError: if it is not a PNG, or has colours instead of numbers.
    """
    image = open_image(data, max_pixels)
    if image.format != "PNG" or image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise ValueError(f"expected a label map in a grey or palette PNG, got a {image.format} of mode {image.mode}")
    bits = data[24]  # of the PNG's first chunk, IHDR
    labels = np.asarray(upright(image))
    labels = labels.astype(np.uint16 if labels.dtype.itemsize > 1 else np.uint8)
    return labels // _GREY_STEPS.get(bits, 1) if image.mode == "L" else labels
