"""Masks of upright rectangles: boxes, grids, all but a rectangle, and strips along the sides."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks import painter
from inpaint_module.masks.generator import MaskGenerator, checked_at_least, checked_range, checked_share

Size = TypeVar("Size", int, Tensor)


class Boxes(MaskGenerator):
    """Axis-parallel boxes at uniform places, as LaMa's box masks (Suvorov et al. 2022, section 3.3).

    Args:
        count: fewest and most boxes of a mask; from 0 on, masks may be empty.
        size: shortest and longest side in pixels at `resolution`; the longest is at most what fits between the margins
            of the short side, as in LaMa.
        margin: least distance of a box from the border, in pixels at `resolution`.
        hang: share of a box's side that may lie beyond the border, 0..1; 0.5 in CoModGAN (Zhao et al. 2021).
        rounded: probability that a box is instead a square, as wide as the box, with rounded corners; 0.5 in
            Stable Diffusion's "512train-large". It may hang off the bottom, as it does there.
        corner: least and greatest radius of rounded corners in pixels at `resolution`, at most half a side.
        resolution: short side of the image at which the sizes hold; None: the sizes are pixels of any image.

    Raises:
        ValueError: a bound out of order or negative, a share beyond 0..1, or a margin that leaves no room.
    """

    def __init__(
        self,
        count: tuple[int, int] = (1, 4),
        size: tuple[int, int] = (30, 150),
        *,
        margin: int = 10,
        hang: float = 0.0,
        rounded: float = 0.0,
        corner: tuple[int, int] = (0, 60),
        resolution: int | None = 256,
    ):
        checked_range("count", count, 0)
        checked_range("size", size, 1)
        checked_range("corner", corner, 0)
        checked_share(hang=hang, rounded=rounded)
        checked_at_least(1, resolution=resolution)
        checked_at_least(0, margin=margin)
        if resolution is not None and 2 * margin >= resolution:
            raise ValueError(f"margin must be in 0..{(resolution - 1) // 2} at resolution {resolution}, got {margin}")
        self.count, self.size, self.margin, self.hang = count, size, margin, hang
        self.rounded, self.corner, self.resolution = rounded, corner, resolution

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        most, scale = self.count[1], _Scale(min(height, width), self.resolution or min(height, width))
        words = randomness.draw(keys, 1 + 6 * most)
        number = randomness.integers(words[:, :1], self.count[0], most + 1)
        visible = torch.arange(most, device=keys.device) < number
        across, left, down, top, round_, corner = words[:, 1:].unflatten(1, (6, most)).unbind(1)
        longest = max(self.size[0], min(self.size[1], scale.resolution - 2 * self.margin))
        box_width = randomness.integers(across, self.size[0], longest + 1)
        box_height = randomness.integers(down, self.size[0], longest + 1)
        radius = randomness.integers(corner, self.corner[0], self.corner[1] + 1).float()
        box_width, x = self._room(scale.pixels(box_width), width, scale)
        box_height, y = self._room(scale.pixels(box_height), height, scale)
        left, top = randomness.integers(left, *x), randomness.integers(top, *y)
        is_round = round_ < round(self.rounded * 2**32)
        box_height = torch.where(is_round, box_width, box_height)
        marks = painter.boxes(left, top, box_width, box_height, visible)
        radius = torch.minimum(radius * (scale.short_side / scale.resolution), marks.along)
        # of a square of 2 pixels, round corners would leave nothing
        marks = painter.with_radius(marks, torch.where(is_round & (marks.along >= 1), radius, marks.radius))
        return painter.paint(marks, height, width, max(1, scale.pixels(self.size[1])))

    def _room(self, length: Tensor, side: int, scale: _Scale) -> tuple[Tensor, tuple[int | Tensor, Tensor]]:
        """Lengths along one side of the image that fit it, int64 pixels (B, M), and where the boxes may begin."""
        margin = min(self.margin * scale.short_side // scale.resolution, (side - 1) // 2)
        length = length.clamp(1, side - 2 * margin)
        beyond = (length * round(self.hang * 256)) >> 8
        return length, (margin - beyond, side - margin - length + beyond + 1)


class _Scale(NamedTuple):
    """The short side of an image, and the one at which sizes are given."""

    short_side: int
    resolution: int

    def pixels(self, size: Size) -> Size:
        """A whole number of pixels at the resolution as the nearest whole number of the image's."""
        return (size * (2 * self.short_side) + self.resolution) // (2 * self.resolution)


class Grid(MaskGenerator):
    """Rows and columns at random regular steps, as LaMa's super-resolution masks.

    For each axis the step is uniform in `step`, the lines are 1..min(step - 1, thickest) wide, and the first begins
    within one step of the border. Pixels are counted as they are: nothing scales with the image.

    Args:
        step: least and greatest distance from one line to the next in pixels, at least 2.
        thickest: most pixels across a line.

    Raises:
        ValueError: a bound out of order or too low.
    """

    def __init__(self, step: tuple[int, int] = (2, 4), *, thickest: int = 3):
        checked_range("step", step, 2)
        checked_at_least(1, thickest=thickest)
        self.step, self.thickest = step, thickest

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        words = randomness.draw(keys, 6)
        return (self._lines(words[:, :3], width)[:, None] | self._lines(words[:, 3:], height)[:, :, None])[:, None]

    def _lines(self, words: Tensor, side: int) -> Tensor:
        """Which places along one axis are masked: bool (B, side)."""
        step = randomness.integers(words[:, 0], *(self.step[0], self.step[1] + 1))
        thick = randomness.integers(words[:, 1], 1, torch.clamp_max(step, self.thickest + 1))
        offset = randomness.integers(words[:, 2], 0, step).clamp_max(side - 1)
        place = torch.arange(side, device=words.device) - offset[:, None]
        return (place >= 0) & (place % step[:, None] < thick[:, None])


class KeepEvery(MaskGenerator):
    """One pixel in `rows` x `columns` is known, the same for every key: RePaint's test masks (Lugmayr et al. 2022).

    2 x 2 is "super-resolve 2x", 2 x 1 "alternating lines"; the pixel of row 0 and column 0 is known.

    Args:
        rows: rows from one known row to the next.
        columns: columns from one known column to the next.

    Raises:
        ValueError: a number below 1, both 1, or an image too small to lose a pixel.
    """

    def __init__(self, rows: int = 2, columns: int = 2):
        checked_at_least(1, rows=rows, columns=columns)
        if rows == columns == 1:
            raise ValueError("rows and columns must not both be 1: every pixel would be known and every mask empty")
        self.rows, self.columns = rows, columns

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        if (height == 1 or self.rows == 1) and (width == 1 or self.columns == 1):
            raise ValueError(f"of {height} x {width} pixels, one in {self.rows} x {self.columns} leaves none to mask")
        x, y = torch.arange(width, device=keys.device), torch.arange(height, device=keys.device)
        lost = (x % self.columns != 0) | (y % self.rows != 0)[:, None]
        return lost.expand(len(keys), 1, height, width).clone()


class KeepRegion(MaskGenerator):
    """All but one fixed rectangle is masked, the same for every key: RePaint's "half" and "expand".

    Args:
        left: where the known rectangle begins, as a share of the width, 0..1.
        top: where it begins, as a share of the height, 0..1.
        width: its width as a share of the image's, 0..1; 0 keeps nothing, which masks the whole image.
        height: its height as a share of the image's, 0..1.

    Raises:
        ValueError: a share beyond 0..1, or a rectangle that covers the image.
    """

    def __init__(self, left: float = 0.0, top: float = 0.0, width: float = 0.0, height: float = 0.0):
        checked_share(left=left, top=top, width=width, height=height)
        if left == top == 0 and width == height == 1:
            raise ValueError("the known rectangle must not cover the image, or every mask would be empty")
        self.left, self.top, self.width, self.height = left, top, width, height

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        masks = torch.ones(len(keys), 1, height, width, dtype=torch.bool, device=keys.device)
        left, top = int(self.left * width), int(self.top * height)
        masks[..., top : top + int(self.height * height), left : left + int(self.width * width)] = False
        return masks


class Outpaint(MaskGenerator):
    """The image is to be continued: each side is masked with probability 1/2, at least one, as LaMa's outpainting.

    Args:
        share: least and greatest part of the image's width or height that one strip takes, within 0..1.

    Raises:
        ValueError: a bound out of order or beyond 0..1.
    """

    def __init__(self, share: tuple[float, float] = (0.04, 0.25)):
        checked_range("share", share, 0, 1)
        self.share = share

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        sides, shares, pick = randomness.draw(keys, 9).split([4, 4, 1], 1)
        chosen = sides < 2**31
        lone = torch.arange(4, device=keys.device) == randomness.integers(pick, 0, 4)
        chosen = torch.where(chosen.any(1, keepdim=True), chosen, lone)
        left, right = self._depths(shares[:, :2], chosen[:, :2], width)
        top, bottom = self._depths(shares[:, 2:], chosen[:, 2:], height)
        x, y = torch.arange(width, device=keys.device), torch.arange(height, device=keys.device)
        columns = (x < left[:, None]) | (x >= width - right[:, None])
        rows = (y < top[:, None]) | (y >= height - bottom[:, None])
        return (columns[:, None] | rows[:, :, None])[:, None]

    def _depths(self, words: Tensor, chosen: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """How deep the strips at both ends of one side of the image are, int64 pixels (B,) each."""
        low, high = (max(1, round(bound * side)) for bound in self.share)
        first, last = torch.where(chosen, randomness.integers(words, low, high + 1), 0).unbind(1)
        return first, last
