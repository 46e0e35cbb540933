"""Published mask recipes once more: one mask at a time, one mark at a time, with NumPy's own random numbers.

Written from the recipes alone (the parameters are those of the published code, `ri(a, b)` uniform in [a, b)), with
none of the package's code, and drawn by the libraries that the originals draw with, OpenCV for LaMa's and Pillow for
the others, so that its statistics say something about the fast generators.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from PIL import Image, ImageDraw

Mask = np.ndarray


class Canvas:
    """A square mask, uint8 of 0 and 1, and the random numbers that it is drawn with."""

    def __init__(self, side: int, rng: np.random.Generator):
        self.mask, self.side, self.rng = np.zeros((side, side), np.uint8), side, rng

    def ri(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def box(self, left: int, top: int, width: int, height: int) -> None:
        """As far as it lies in the image; empty if it has no width."""
        self.mask[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = 1

    def draw(self, draw: Callable[[ImageDraw.ImageDraw], None]) -> None:
        """With Pillow."""
        image = Image.fromarray(self.mask)
        draw(ImageDraw.Draw(image))
        self.mask |= np.asarray(image)


def lama_strokes(c: Canvas, count: tuple[int, int], max_len: int, max_width: int, kinds: bool = False) -> None:
    """`count` as drawn: one more than LaMa's configs say."""
    for stroke in range(c.ri(count[0], count[1] + 1)):
        x, y = c.ri(0, c.side), c.ri(0, c.side)
        for _ in range(1 + c.ri(0, 5)):
            angle = 0.01 + c.ri(0, 4)
            angle = 2 * math.pi - angle if stroke % 2 == 0 else angle
            length, width = 10 + c.ri(0, max_len), 5 + c.ri(0, max_width)
            end = [int(v) for v in (x + length * math.sin(angle), y + length * math.cos(angle))]
            end = [min(max(v, 0), c.side) for v in end]
            kind = c.ri(0, 3) if kinds else 0
            if kind == 0:
                cv2.line(c.mask, (x, y), (end[0], end[1]), 1, width)
            elif kind == 1:
                cv2.circle(c.mask, (x, y), width, 1, -1)
            else:
                half = width // 2
                c.box(x - half, y - half, 2 * half, 2 * half)
            x, y = end


def lama_boxes(c: Canvas, count: tuple[int, int], sides: tuple[int, int], margin: int) -> None:
    """`sides` as drawn: LaMa's own classes draw up to the configured size, which is left out elsewhere."""
    for _ in range(c.ri(count[0], count[1] + 1)):
        width, height = (c.ri(sides[0], min(sides[1] + 1, c.side - 2 * margin)) for _ in "xy")
        left, top = (c.ri(margin, c.side - margin - size + 1) for size in (width, height))
        c.box(left, top, width, height)


def lama_medium(c: Canvas) -> None:
    if c.rng.random() < 1 / 1.3:
        lama_strokes(c, (4, 11), 200, 100)
    else:
        lama_boxes(c, (1, 5), (30, 150), 0)


def lama_thick(c: Canvas) -> None:
    if c.rng.random() < 1 / 1.3:
        lama_strokes(c, (1, 6), 450, 250)
    else:
        lama_boxes(c, (1, 4), (30, 300), 10)


def lama_train(c: Canvas) -> None:
    if c.rng.random() < 1 / 2:
        lama_strokes(c, (1, 6), 200, 100)
    else:
        lama_boxes(c, (1, 4), (30, 150), 10)


def outpaint(c: Canvas, low: float, high: float) -> None:
    chosen = c.rng.random(4) < 0.5
    if not chosen.any():
        chosen[c.ri(0, 4)] = True
    for view, on in zip((c.mask, c.mask[::-1], c.mask.T, c.mask.T[::-1]), chosen, strict=True):
        view[: c.ri(int(low * c.side), int(high * c.side))] |= on


def sd(c: Canvas) -> None:
    if c.rng.random() < 0.25:
        c.mask[:] = 1
    elif c.rng.random() < 0.5:
        for _ in range(c.ri(1, 5)):
            x, y, angle = c.ri(0, c.side), c.ri(0, c.side), c.ri(0, 360)  # that many radians
            length, width = c.ri(10, 450), c.ri(5, 400)
            ends = (x, y, x + length * math.sin(angle), y + length * math.cos(angle))
            c.draw(partial(ImageDraw.ImageDraw.line, xy=ends, fill=1, width=width))
    else:
        for _ in range(c.ri(1, 4)):
            sd_box(c)


def sd_box(c: Canvas) -> None:
    width, height = c.ri(75, 450), c.ri(75, 450)
    left, top = (c.ri(10, c.side - 10 - size) for size in (width, height))
    if c.rng.random() < 0.5:
        c.box(left, top, width, height)
    else:
        square = (left, top, left + width, top + width)
        c.draw(partial(ImageDraw.ImageDraw.rounded_rectangle, xy=square, radius=c.ri(0, 60), fill=1))


def sdxl(c: Canvas) -> None:
    if c.rng.random() < 0.25:
        c.mask[:] = 1
        return
    (
        lambda: lama_boxes(c, (1, 2), (100, 511), 10),
        lambda: lama_strokes(c, (1, 2), 60, 256, True),
        lambda: outpaint(c, 0.04, 0.5),
    )[c.ri(0, 3)]()


def zigzags(c: Canvas, number: int, vertices: tuple[int, int], widths: tuple[int, int]) -> None:
    own, c.mask = c.mask, np.zeros_like(c.mask)
    mean, spread, radius = 2 * math.pi / 5, 2 * math.pi / 15, c.side * math.sqrt(2) / 8
    for _ in range(number):
        low, high = mean - c.rng.uniform(0, spread), mean + c.rng.uniform(0, spread)
        points = [(c.ri(0, c.side), c.ri(0, c.side))]
        for vertex in range(c.ri(*vertices)):
            angle = c.rng.uniform(low, high) * (-1 if vertex % 2 == 0 else 1)
            step = min(max(c.rng.normal(radius, radius // 2), 0), 2 * radius)
            ends = (points[-1][0] + step * math.cos(angle), points[-1][1] + step * math.sin(angle))
            points.append((int(min(max(ends[0], 0), c.side)), int(min(max(ends[1], 0), c.side))))
        c.draw(partial(zigzag, points=points, width=c.ri(*widths)))
    for axis in (0, 1):
        if c.rng.random() < 0.5:
            c.mask = np.flip(c.mask, axis)
    c.mask = own | c.mask


def zigzag(draw: ImageDraw.ImageDraw, points: list[tuple[int, int]], width: int) -> None:
    draw.line(points, fill=1, width=width)
    for x, y in points:
        draw.ellipse((x - width // 2, y - width // 2, x + width // 2, y + width // 2), fill=1)


def boxes_and_brushes(c: Canvas, halves: int, wholes: int, brushes: int) -> None:
    """CoModGAN and MAT: up to that many boxes of up to half the side and of up to all of it, and brush strokes."""
    while not 0 < c.mask.mean() < 1:
        c.mask[:] = 0
        for most, longest in ((halves, c.side // 2), (wholes, c.side)):
            for _ in range(c.ri(0, most + 1)):
                width, height = c.ri(0, longest), c.ri(0, longest)
                left, top = (c.ri(-(size // 2), c.side - size + size // 2) for size in (width, height))
                c.box(left, top, width, height)
        zigzags(c, c.ri(0, brushes + 1), (4, 18), (12, 48))


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
        c.mask[:] = 0
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
    corners = np.stack([x * size + place[0], y * size + place[1]], 1)
    c.draw(partial(ImageDraw.ImageDraw.polygon, xy=[tuple(corner) for corner in corners.tolist()], fill=1))


def grid(c: Canvas) -> None:
    for lines in (c.mask, c.mask.T):
        step = c.ri(2, 5)
        width, offset = c.ri(1, min(step, 4)), c.ri(0, step)
        for nth in range(width):
            lines[offset + nth :: step] = 1


SLOW: dict[str, tuple[Callable[[Canvas], None], int]] = {  # and the side of the masks, in whose pixels the sizes are
    "lama-thin": (lambda c: lama_strokes(c, (4, 71), 100, 20), 512),
    "lama-medium": (lama_medium, 512),
    "lama-thick": (lama_thick, 512),
    "lama-train": (lama_train, 256),
    "sd": (sd, 512),
    "sdxl": (sdxl, 512),
    "deepfill": (lambda c: zigzags(c, c.ri(1, 4), (4, 12), (12, 40)), 256),
    "comodgan": (lambda c: boxes_and_brushes(c, 9, 4, 19), 512),
    "mat": (lambda c: boxes_and_brushes(c, 4, 2, 8), 512),
    "outpaint": (lambda c: outpaint(c, 0.04, 0.25), 512),
    "brushnet": (lambda c: zigzags(c, c.ri(1, 4), (0, 8), (128, 129)), 512),
    "cloud": (cloud, 96),
    "blob": (blob, 96),
    "polygon": (polygon, 96),
    "boxes": (lambda c: lama_boxes(c, (1, 4), (30, 150), 10), 256),
    "grid": (grid, 96),
}


def slow_masks(name: str, number: int, side: int | None = None, seed: int = 0) -> np.ndarray:
    """`number` masks of a recipe: bool (number, side, side); at another side the sizes are pixels as before."""
    rng, (recipe, own_side) = np.random.default_rng(seed), SLOW[name]
    masks = []
    for _ in range(number):
        canvas = Canvas(side or own_side, rng)
        recipe(canvas)
        masks.append(canvas.mask.astype(bool))
    return np.stack(masks)
