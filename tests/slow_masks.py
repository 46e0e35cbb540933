"""Published mask recipes once more: one mask at a time, one mark at a time, with NumPy's own random numbers.

Written from the recipes alone (the parameters are those of the published code at 512 pixels, `ri(a, b)` uniform in
[a, b)), with none of the package's code, so that its statistics say something about the fast generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Mask = np.ndarray


class Canvas:
    """A square mask, and the ratio of its side to the recipe's 512 pixels."""

    def __init__(self, side: int, rng: np.random.Generator):
        self.mask, self.side, self.scale, self.rng = np.zeros((side, side), bool), side, side / 512, rng

    def ri(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def capsule(self, x0: float, y0: float, x1: float, y1: float, radius: float) -> None:
        """All pixels whose centre is within `radius` of the segment; at least half a pixel."""
        radius = max(radius, 0.5)
        left, right = (int(max(0, v)) for v in (min(x0, x1) - radius, max(x0, x1) + radius + 1))
        top, bottom = (int(max(0, v)) for v in (min(y0, y1) - radius, max(y0, y1) + radius + 1))
        part = self.mask[top : bottom + 1, left : right + 1]
        y, x = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
        part |= (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2 <= radius * radius

    def box(self, left: float, top: float, width: float, height: float) -> None:
        x, y = round(left), round(top)
        self.mask[max(y, 0) : max(round(top + height), y + 1), max(x, 0) : max(round(left + width), x + 1)] = True


def lama_strokes(c: Canvas, count: tuple[int, int], max_len: int, max_width: int, kinds: bool = False) -> None:
    for stroke in range(c.ri(count[0], count[1] + 1)):
        x, y = c.ri(0, c.side), c.ri(0, c.side)
        for _ in range(1 + c.ri(0, 5)):
            angle = 0.01 + c.ri(0, 4)
            angle = 2 * math.pi - angle if stroke % 2 == 0 else angle
            length, width = (10 + c.ri(0, max_len)) * c.scale, (5 + c.ri(0, max_width)) * c.scale
            end_x, end_y = x + length * math.sin(angle), y + length * math.cos(angle)
            end_x, end_y = min(max(end_x, 0), c.side), min(max(end_y, 0), c.side)
            kind = c.ri(0, 3) if kinds else 0
            if kind == 0:
                c.capsule(x, y, end_x, end_y, width / 2)
            elif kind == 1:
                c.capsule(x, y, x, y, width)
            else:
                c.box(x - width / 2, y - width / 2, width, width)
            x, y = end_x, end_y


def lama_boxes(c: Canvas, count: tuple[int, int], sides: tuple[int, int], margin: int) -> None:
    for _ in range(c.ri(count[0], count[1] + 1)):
        width, height = (min(c.ri(*sides), 512 - 2 * margin) for _ in "xy")
        left, top = c.ri(margin, 512 - margin - width + 1), c.ri(margin, 512 - margin - height + 1)
        c.box(*(v * c.scale for v in (left, top, width, height)))


def outpaint(c: Canvas, low: float, high: float) -> None:
    chosen = c.rng.random(4) < 0.5
    if not chosen.any():
        chosen[c.ri(0, 4)] = True
    depths = [round(c.rng.uniform(low, high) * c.side) for _ in range(4)]
    for view, on, depth in zip((c.mask, c.mask[::-1], c.mask.T, c.mask.T[::-1]), chosen, depths, strict=True):
        view[:depth] |= on


def lama_thin(c: Canvas) -> None:
    lama_strokes(c, (4, 70), 100, 20)


def lama_medium(c: Canvas) -> None:
    if c.rng.random() < 1 / 1.3:
        lama_strokes(c, (4, 10), 200, 100)
    else:
        lama_boxes(c, (1, 5), (30, 150), 0)


def lama_thick(c: Canvas) -> None:
    if c.rng.random() < 1 / 1.3:
        lama_strokes(c, (1, 5), 450, 250)
    else:
        lama_boxes(c, (1, 4), (30, 300), 10)


def sd(c: Canvas) -> None:
    if c.rng.random() < 0.25:
        c.mask[:] = True
    elif c.rng.random() < 0.5:
        for _ in range(c.ri(1, 5)):
            line(c, c.ri(10, 450) * c.scale, c.ri(5, 400) * c.scale)
    else:
        for _ in range(c.ri(1, 4)):
            sd_box(c)


def line(c: Canvas, length: float, width: float) -> None:
    x0, y0, angle = c.ri(0, c.side), c.ri(0, c.side), c.rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[: c.side, : c.side]
    along = (x - x0) * math.cos(angle) + (y - y0) * math.sin(angle)
    across = (y - y0) * math.cos(angle) - (x - x0) * math.sin(angle)
    c.mask |= (along >= -0.5) & (along <= length + 0.5) & (abs(across) <= max(width, 1) / 2)


def sd_box(c: Canvas) -> None:
    width, height = c.ri(75, 450), c.ri(75, 450)
    left, top = c.ri(10, 512 - 10 - width + 1), c.ri(10, 512 - 10 - height + 1)
    if c.rng.random() < 0.5:
        c.box(*(v * c.scale for v in (left, top, width, height)))
        return
    radius = min(c.ri(0, 60), width / 2) * c.scale
    left, top, width = (v * c.scale for v in (left, top, width))
    y, x = np.mgrid[: c.side, : c.side]
    inner = width / 2 - radius  # a square grown by a disc
    dx = np.maximum(abs(x + 0.5 - left - width / 2) - inner, 0)
    dy = np.maximum(abs(y + 0.5 - top - width / 2) - inner, 0)
    c.mask |= dx * dx + dy * dy <= radius * radius


def sdxl(c: Canvas) -> None:
    if c.rng.random() < 0.25:
        c.mask[:] = True
        return
    (
        lambda: lama_boxes(c, (1, 2), (100, 512), 10),
        lambda: lama_strokes(c, (1, 2), 60, 256, True),
        lambda: outpaint(c, 0.04, 0.5),
    )[c.ri(0, 3)]()


def zigzags(c: Canvas, number: int, vertices: tuple[int, int], widths: tuple[int, int], resolution: int) -> None:
    own, c.mask = c.mask, np.zeros_like(c.mask)
    mean, spread, radius = 2 * math.pi / 5, 2 * math.pi / 15, c.side * math.sqrt(2) / 8
    for _ in range(number):
        low, high = mean - c.rng.uniform(0, spread), mean + c.rng.uniform(0, spread)
        x, y = c.ri(0, c.side), c.ri(0, c.side)
        width = c.ri(*widths) * c.side / resolution
        c.capsule(x, y, x, y, width / 2)
        for vertex in range(c.ri(*vertices)):
            angle = c.rng.uniform(low, high) * (-1 if vertex % 2 == 0 else 1)
            step = min(max(c.rng.normal(radius, radius / 2), 0), 2 * radius)
            end_x = min(max(x + step * math.cos(angle), 0), c.side)
            end_y = min(max(y + step * math.sin(angle), 0), c.side)
            c.capsule(x, y, end_x, end_y, width / 2)
            x, y = end_x, end_y
    for axis in (0, 1):
        if c.rng.random() < 0.5:
            c.mask = np.flip(c.mask, axis)
    c.mask = own | c.mask


def deepfill(c: Canvas) -> None:
    zigzags(c, c.ri(1, 4), (4, 12), (12, 40), 256)


def brushnet(c: Canvas) -> None:
    zigzags(c, c.ri(1, 4), (0, 8), (128, 129), 512)


def comodgan(c: Canvas, brushes: int = 20) -> None:
    while not 0 < c.mask.mean() < 1:
        c.mask[:] = False
        for tries, most in ((10, 256), (5, 512)):
            for _ in range(c.ri(0, tries)):
                width, height = c.ri(0, most), c.ri(0, most)
                left, top = (c.ri(-(size // 2), 512 - size + size // 2) for size in (width, height))
                c.mask[  # empty if it has no width, as published
                    max(0, round(top * c.scale)) : max(0, round((top + height) * c.scale)),
                    max(0, round(left * c.scale)) : max(0, round((left + width) * c.scale)),
                ] = True
        zigzags(c, c.ri(0, brushes), (4, 18), (12, 48), 512)


def mat(c: Canvas) -> None:
    comodgan(c, 9)


def noise(c: Canvas, cells: int, octaves: int) -> np.ndarray:
    total = np.zeros((c.side, c.side))
    for octave in range(octaves):
        number = cells << octave
        lattice, place = c.rng.random((number + 1, number + 1)), np.arange(c.side) * number / c.side
        cell, way = place.astype(int), place % 1
        way = way * way * (3 - 2 * way)
        rows = lattice[cell] * (1 - way)[:, None] + lattice[cell + 1] * way[:, None]
        total += (rows[:, cell] * (1 - way) + rows[:, cell + 1] * way) / 2 ** (octave + 1)
    return total


def cloud(c: Canvas) -> None:
    field = noise(c, 4, 4)
    c.mask = field >= np.quantile(field, 1 - c.rng.uniform(0.1, 0.6))


def blob(c: Canvas) -> None:
    x0, y0, angle, stretch = (*(c.rng.random(2) * c.side), c.rng.uniform(0, math.pi), c.rng.uniform(1, 2))
    y, x = np.mgrid[: c.side, : c.side]
    u = (x - x0) * math.cos(angle) + (y - y0) * math.sin(angle)
    v = ((y - y0) * math.cos(angle) - (x - x0) * math.sin(angle)) * stretch
    field = np.hypot(u, v) / c.side + 0.3 * noise(c, 3, 2)
    c.mask = field <= np.quantile(field, c.rng.uniform(0.2, 0.8))


def polygon(c: Canvas) -> None:
    while not 0.1 <= c.mask.mean() <= 0.6:
        c.mask[:] = False
        for _ in range(2 if c.rng.random() < 1 / 3 else 1):
            one_polygon(c)


def one_polygon(c: Canvas) -> None:
    number = c.ri(3, 13)
    angle = (np.arange(number) + c.rng.uniform(0.1, 0.9, number)) * 2 * math.pi / number
    x, y = (c.rng.uniform(0.4, 1, number) * f(angle) for f in (np.ones_like, np.zeros_like))
    x, y = x * np.cos(angle), x * np.sin(angle) + y
    area = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    size = math.sqrt(c.rng.uniform(0.1, 0.6) * c.side**2 / max(area, 0.05))
    place = c.rng.integers(0, c.side, 2)
    image = Image.new("1", (c.side, c.side))
    corners = np.stack([x * size + place[0], y * size + place[1]], 1)
    ImageDraw.Draw(image).polygon([tuple(corner) for corner in corners.tolist()], fill=1)
    c.mask |= np.asarray(image)


def grid(c: Canvas) -> None:
    for lines in (c.mask, c.mask.T):
        step = c.ri(2, 5)
        width, offset = c.ri(1, min(step, 4)), c.ri(0, step)
        for nth in range(width):
            lines[offset + nth :: step] = True


SLOW: dict[str, Callable[[Canvas], None]] = {
    "lama-thin": lama_thin,
    "lama-medium": lama_medium,
    "lama-thick": lama_thick,
    "sd": sd,
    "sdxl": sdxl,
    "deepfill": deepfill,
    "comodgan": comodgan,
    "mat": mat,
    "outpaint": lambda c: outpaint(c, 0.04, 0.25),
    "brushnet": brushnet,
    "cloud": cloud,
    "blob": blob,
    "polygon": polygon,
    "grid": grid,
}


def slow_masks(name: str, number: int, side: int, seed: int = 0) -> np.ndarray:
    """`number` masks of a recipe: bool (number, side, side)."""
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(number):
        canvas = Canvas(side, rng)
        SLOW[name](canvas)
        masks.append(canvas.mask)
    return np.stack(masks)
