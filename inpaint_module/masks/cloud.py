"""Clouds: smooth noise above a threshold."""

from __future__ import annotations

from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import MaskGenerator, checked_at_least, checked_range, in_groups
from inpaint_module.masks.noise import fractal_noise, highest_share


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
