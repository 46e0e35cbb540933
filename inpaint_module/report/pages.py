"""Pages, and the pictures on them: HTML and charts from the templates beside this file, which need nothing else when
they are opened; tensors to PIL images, masks in red over photos, and sheets of pictures with words.

The one place that builds HTML: no script, no file beside the page, colours from its style sheet. jinja2 escapes every
value; only what `render_part` returned goes into a page as it is.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from inpaint_module.pixels import to_bytes

_FOLDER = Path(__file__).parent / "templates"
_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 32
_MOST_POINTS = 400
STYLE = (_FOLDER / "style.css").read_text(encoding="utf-8")
_TEMPLATES = Environment(
    loader=FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values: Any) -> str:
    """A page of a template in `templates`.

    Args:
        template: its file name.
        values: what it names; all are escaped but parts by `render_part`.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    return _TEMPLATES.get_template(template).render(**values)


def render_part(template: str, **values: Any) -> Markup:
    """As `render`, a part of a page."""
    return Markup(render(template, **values))


def data_url(data: bytes, kind: str) -> str:
    """A picture's file inside an address; `kind` is png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def picture_url(picture: Image.Image) -> str:
    """A picture as a JPEG inside an address: a fifth of a PNG's bytes, and nobody measures on it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, subsampling=0)
    return data_url(file.getvalue(), "jpeg")


class Line(NamedTuple):
    """A named line through (step, value) points; `style` is its CSS class."""

    name: str
    points: Sequence[tuple[int, float]]
    style: str


def line_chart(description: str, lines: Sequence[Line]) -> Markup:
    """The chart, 460 x 250 units that scale with the page; values that are not finite are left out.

    Args:
        description: what it shows, for those who do not see it.
        lines: at least one with a finite point.
    """
    kept = [line._replace(points=thinned([p for p in line.points if math.isfinite(p[1])])) for line in lines]
    points = [point for line in kept for point in line.points]
    steps, values = nice_ticks(0, max(step for step, _ in points)), [value for _, value in points]
    levels = nice_ticks(min(values), max(values))
    x, y = _scale(steps, _LEFT, _WIDTH - _RIGHT), _scale(levels, _HEIGHT - _BOTTOM, _TOP)
    size = {"width": _WIDTH, "height": _HEIGHT, "left": _LEFT, "right": _WIDTH - _RIGHT}
    drawn = [
        {"style": line.style, "points": " ".join(f"{x(step)},{y(value)}" for step, value in line.points)}
        for line in kept
    ]
    return render_part(
        "chart.svg",
        description=description,
        levels=[{"at": y(level), "text": f"{level:.4g}"} for level in levels],
        steps=[{"at": x(step), "text": f"{step:,.0f}"} for step in steps],
        lines=drawn,
        **size,
    )


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most 400 points: means over neighbours."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [(group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups]


def smoothed(points: Sequence[tuple[int, float]], width: int) -> list[tuple[int, float]]:
    """Each value's mean with the `width` - 1 before it."""
    return [
        (
            step,
            math.fsum(value for _, value in points[max(0, number - width + 1) : number + 1]) / min(width, number + 1),
        )
        for number, (step, _) in enumerate(points)
    ]


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers, at most `most` + 2, the first not above `low` and the last not below `high`."""
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    size = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough * (1 - 1e-9))
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [number * size for number in range(first, last + 1)]


def _scale(ticks: Sequence[float], start: float, end: float) -> Callable[[float], str]:
    """From values to units of the picture: the first tick to `start`, the last to `end`."""
    low, span = ticks[0], ticks[-1] - ticks[0]
    return lambda value: f"{start + (value - low) / span * (end - start):.1f}"


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
