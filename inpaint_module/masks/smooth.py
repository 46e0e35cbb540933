"""Masks with smooth borders, from random fields: clouds, and blobs, which are warped ellipses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import MaskGenerator, checked_at_least, checked_range, in_groups, square_root
from inpaint_module.masks.noise import FIELD_BITS, fractal_noise, highest_share


class Cloud(MaskGenerator):
    """Fractal noise above that threshold which covers just the drawn share of the image, as in sd-scripts.

    Args:
        share: least and greatest masked part of the image, within 0..1; exact but for ties, and at least one pixel.
        cells: bumps of the coarsest octave along the short side.
        octaves: number of octaves, each twice as fine and half as strong.

    Raises:
        ValueError: a bound out of order or beyond 0..1, or a number below 1.
    """

    def __init__(self, share: tuple[float, float] = (0.1, 0.6), *, cells: int = 4, octaves: int = 4):
        checked_range("share", share, 0, 1)
        checked_at_least(1, cells=cells, octaves=octaves)
        self.share, self.cells, self.octaves = share, cells, octaves

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        return in_groups(lambda part: self._paint_group(part, height, width), keys, height * width)

    def _paint_group(self, keys: Tensor, height: int, width: int) -> Tensor:
        lot = randomness.draw(keys, 1)[:, 0].double() * 2.0**-32
        field = fractal_noise(randomness.fork(keys, 0), height, width, self.cells, self.octaves)
        return highest_share(field, self.share[0] + lot * (self.share[1] - self.share[0]))


class Blob(MaskGenerator):
    """An ellipse at a random place and angle, warped by smooth noise, as in ai-toolkit.

    The pixels are ranked by their distance from the centre, measured along the ellipse's axes plus noise; the nearest
    ones are masked, as many as the drawn share of the image asks for.

    Args:
        share: least and greatest masked part of the image, within 0..1; at least one pixel.
        stretch: least and greatest ratio of the ellipse's axes, at least 1.
        warp: how far the noise moves the border, as a share of the image's short side; 0 for clean ellipses.
        cells: bumps of the noise along the short side.

    Raises:
        ValueError: a bound out of order or beyond its range, or a negative warp.
    """

    def __init__(
        self,
        share: tuple[float, float] = (0.2, 0.8),
        *,
        stretch: tuple[float, float] = (1.0, 2.0),
        warp: float = 0.3,
        cells: int = 3,
    ):
        checked_range("share", share, 0, 1)
        checked_range("stretch", stretch, 1)
        checked_at_least(1, cells=cells)
        if warp < 0:
            raise ValueError(f"warp must be at least 0, got {warp}")
        self.share, self.stretch, self.warp, self.cells = share, stretch, warp, cells

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        return in_groups(lambda part: self._paint_group(part, height, width), keys, height * width)

    def _paint_group(self, keys: Tensor, height: int, width: int) -> Tensor:
        lots = randomness.draw(keys, 5).double() * 2.0**-32
        x, y, turn, stretch, share = lots.unbind(1)
        angle = turn * math.pi
        cos, sin = angle.cos().float()[:, None, None], angle.sin().float()[:, None, None]
        across = torch.arange(width, device=keys.device) - (x * width).float()[:, None, None]
        down = torch.arange(height, device=keys.device)[:, None] - (y * height).float()[:, None, None]
        stretch = (self.stretch[0] + stretch * (self.stretch[1] - self.stretch[0])).float()[:, None, None]
        u, v = cos * across + sin * down, (cos * down - sin * across) * stretch
        noise = fractal_noise(randomness.fork(keys, 0), height, width, self.cells, 2).float()
        distance = square_root(u * u + v * v) + noise * (self.warp * min(height, width) * 2.0**-FIELD_BITS)
        farthest = self.stretch[1] * math.hypot(height, width) + self.warp * min(height, width) + 1
        field = ((farthest - distance) * (2**FIELD_BITS / farthest)).int()
        return highest_share(field, self.share[0] + share * (self.share[1] - self.share[0]))
