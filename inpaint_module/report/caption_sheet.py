"""Sheets of pictures with words: a row per photo, what was measured beneath it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

_GAP, _LINE = 8, 18


class SheetRow(NamedTuple):
    """Pictures side by side, of equal height, and lines of text beneath."""

    pictures: Sequence[Image.Image]
    lines: Sequence[str]


def caption_sheet(title: str, heads: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """Draw rows of pictures under a title, a head over each column; text that does not fit ends in an ellipsis."""
    widths = [max(row.pictures[column].width for row in rows) for column in range(len(heads))]
    lefts = [_GAP + sum(widths[:column]) + column * _GAP for column in range(len(heads))]
    width = lefts[-1] + widths[-1] + _GAP
    tops = [_GAP + 2 * _LINE]
    for row in rows:
        tops.append(tops[-1] + max(picture.height for picture in row.pictures) + _LINE * len(row.lines) + 2 * _GAP)
    sheet = Image.new("RGB", (width, tops[-1]), "white")
    _write(sheet, (_GAP, _GAP // 2), title, width - 2 * _GAP, 15)
    for left, head, room in zip(lefts, heads, widths, strict=True):
        _write(sheet, (left, _GAP // 2 + _LINE), head, room, 12)
    for top, row in zip(tops, rows, strict=False):
        for left, picture in zip(lefts, row.pictures, strict=True):
            sheet.paste(picture, (left, top))
        below = top + max(picture.height for picture in row.pictures) + _GAP // 2
        for number, line in enumerate(row.lines):
            _write(sheet, (_GAP, below + number * _LINE), line, width - 2 * _GAP, 12)
    return sheet


def _write(sheet: Image.Image, where: tuple[int, int], text: str, room: int, size: float) -> None:
    font = ImageFont.load_default(size)
    shown = text.replace("\n", " ")
    while shown and font.getlength(shown) > room:
        shown = shown[:-2].rstrip() + "…"
        if len(shown) <= 1:
            break
    ImageDraw.Draw(sheet).text(where, shown, "black", font)
