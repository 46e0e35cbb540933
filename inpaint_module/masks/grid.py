"""Regular patterns of rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import MaskGenerator, checked_at_least, checked_range


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
