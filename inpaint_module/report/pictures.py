"""Pictures to look at: tensors to PIL images, masks in red over photos, and sheets of pictures with words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from inpaint_module.pixels import to_bytes

RED = (225, 45, 60)
_GAP, _LINE = 8, 18


def to_pil(image: Tensor) -> Image.Image:
    """uint8, or float in 0..1, (3, H, W) to an RGB image, rounded to the nearest byte."""
    return Image.fromarray(np.ascontiguousarray(to_bytes(image.detach()).cpu().movedim(0, -1).numpy()))


def masked_in_red(photo: Image.Image, mask: Tensor) -> Image.Image:
    """The photo in grey, and red where a mask (H, W) of 0 and 1 covers it; the mask takes the photo's size."""
    grey = photo.convert("L").convert("RGB")
    hole = Image.fromarray(mask.cpu().byte().mul(255).numpy()).resize(photo.size, Image.Resampling.BOX)
    return Image.composite(Image.blend(grey, Image.new("RGB", photo.size, RED), 0.7), grey, hole)


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """A picture whose longer side has `side` pixels; small ones keep the edges of their pixels."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)


class SheetRow(NamedTuple):
    """Pictures side by side, of equal height, and lines of text beneath."""

    pictures: Sequence[Image.Image]
    lines: Sequence[str]


def sheet(title: str, heads: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """Draw rows of pictures under a title, a head over each column; text that does not fit ends in an ellipsis."""
    widths = [max(row.pictures[column].width for row in rows) for column in range(len(heads))]
    lefts = [_GAP + sum(widths[:column]) + column * _GAP for column in range(len(heads))]
    width = lefts[-1] + widths[-1] + _GAP
    tops = [_GAP + 2 * _LINE]
    for row in rows:
        tops.append(tops[-1] + max(picture.height for picture in row.pictures) + _LINE * len(row.lines) + 2 * _GAP)
    drawn = Image.new("RGB", (width, tops[-1]), "white")
    _write(drawn, (_GAP, _GAP // 2), title, width - 2 * _GAP, 15)
    for left, head, room in zip(lefts, heads, widths, strict=True):
        _write(drawn, (left, _GAP // 2 + _LINE), head, room, 12)
    for top, row in zip(tops, rows, strict=False):
        for left, picture in zip(lefts, row.pictures, strict=True):
            drawn.paste(picture, (left, top))
        below = top + max(picture.height for picture in row.pictures) + _GAP // 2
        for number, line in enumerate(row.lines):
            _write(drawn, (_GAP, below + number * _LINE), line, width - 2 * _GAP, 12)
    return drawn


def _write(drawn: Image.Image, where: tuple[int, int], text: str, room: int, size: float) -> None:
    font = ImageFont.load_default(size)
    shown = text.replace("\n", " ")
    while shown and font.getlength(shown) > room:
        shown = shown[:-2].rstrip() + "…"
        if len(shown) <= 1:
            break
    ImageDraw.Draw(drawn).text(where, shown, "black", font)
