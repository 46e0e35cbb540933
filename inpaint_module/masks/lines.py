"""Single straight brush strokes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks import painter
from inpaint_module.masks.generator import MaskGenerator, checked_at_least, checked_range, pixel_scale


class Lines(MaskGenerator):
    """Straight lines with butt ends, each by itself: Stable Diffusion's "512train-large" strokes (Rombach et al. 2022).

    Each starts at a uniform point and goes in any direction; it may leave the image.

    Args:
        count: fewest and most lines of a mask; from 0 on, masks may be empty.
        length: shortest and longest line in pixels at `resolution`.
        width: thinnest and thickest line in pixels at `resolution`.
        resolution: short side of the image at which the sizes hold; None: the sizes are pixels of any image.

    Raises:
        ValueError: a bound out of order or too low.
    """

    def __init__(
        self,
        count: tuple[int, int] = (1, 4),
        length: tuple[int, int] = (10, 449),
        width: tuple[int, int] = (5, 399),
        *,
        resolution: int | None = 512,
    ):
        checked_range("count", count, 0)
        checked_range("length", length, 1)
        checked_range("width", width, 1)
        checked_at_least(1, resolution=resolution)
        self.count, self.length, self.width, self.resolution = count, length, width, resolution

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        most, scale = self.count[1], pixel_scale(self.resolution, height, width)
        words = randomness.draw(keys, 1 + 5 * most)
        visible = torch.arange(most, device=keys.device) < randomness.integers(words[:, :1], self.count[0], most + 1)
        x, y, turn, length, thick = words[:, 1:].unflatten(1, (5, most)).unbind(1)
        angle = turn.double() * (2 * math.pi * 2.0**-32)
        cos, sin = angle.cos().float(), angle.sin().float()
        half = randomness.integers(length, self.length[0], self.length[1] + 1).float() * (scale / 2)
        across = randomness.integers(thick, self.width[0], self.width[1] + 1).float() * (scale / 2)
        start_x, start_y = randomness.integers(x, 0, width).float(), randomness.integers(y, 0, height).float()
        centre_x, centre_y = start_x + half * cos, start_y + half * sin
        # half a pixel more at each end, so that the pixels of both end points are covered, as Pillow draws it
        marks = painter.Marks(
            centre_x, centre_y, half + 0.5, across.clamp_min(0.5), cos, sin, torch.zeros_like(half), visible
        )
        longest = math.hypot(self.length[1] * scale + 1, max(1, self.width[1] * scale))
        return painter.paint(marks, height, width, int(longest) + 3)
