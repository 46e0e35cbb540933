"""Random boxes."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks import painter
from inpaint_module.masks.generator import MaskGenerator, checked_range, checked_share

Size = TypeVar("Size", int, Tensor)


class Boxes(MaskGenerator):
    """Axis-parallel boxes at uniform places, as LaMa's box masks (Suvorov et al. 2022, section 3.3).

    Args:
        count: fewest and most boxes of a mask; from 0 on, masks may be empty.
        size: shortest and longest side in pixels at `resolution`; longer than the image allows, they are cut to it.
        margin: least distance of a box from the border, in pixels at `resolution`.
        hang: share of a box's side that may lie beyond the border, 0..1; 0.5 in CoModGAN (Zhao et al. 2021).
        rounded: probability that a box is instead a square, as wide as the box, with rounded corners; 0.5 in
            Stable Diffusion's "512train-large". It may hang off the bottom, as it does there.
        corner: least and greatest radius of rounded corners in pixels at `resolution`, at most half a side.
        resolution: short side of the image at which the sizes hold.

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
        resolution: int = 256,
    ):
        checked_range("count", count, 0)
        checked_range("size", size, 1)
        checked_range("corner", corner, 0)
        checked_share(hang=hang, rounded=rounded)
        if not 0 <= 2 * margin < resolution:
            raise ValueError(f"margin must be in 0..{(resolution - 1) // 2} at resolution {resolution}, got {margin}")
        self.count, self.size, self.margin, self.hang = count, size, margin, hang
        self.rounded, self.corner, self.resolution = rounded, corner, resolution

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        most, short_side = self.count[1], min(height, width)
        words = randomness.draw(keys, 1 + 6 * most)
        number = randomness.integers(words[:, :1], self.count[0], most + 1)
        visible = torch.arange(most, device=keys.device) < number
        across, left, down, top, round_, corner = words[:, 1:].unflatten(1, (6, most)).unbind(1)
        left, box_width = self._spans(across, left, width, short_side)
        top, box_height = self._spans(down, top, height, short_side)
        is_round = round_ < round(self.rounded * 2**32)
        box_height = torch.where(is_round, box_width, box_height)
        marks = painter.boxes(left, top, box_width, box_height, visible)
        radius = randomness.integers(corner, self.corner[0], self.corner[1] + 1).float()
        radius = torch.minimum(radius * (short_side / self.resolution), marks.along)
        marks = painter.with_radius(marks, torch.where(is_round, radius, marks.radius))
        return painter.paint(marks, height, width, self._pixels(self.size[1], short_side))

    def _spans(self, lengths: Tensor, places: Tensor, side: int, short_side: int) -> tuple[Tensor, Tensor]:
        """Where the boxes begin along one side of the image, and how long they are: int64 pixels (B, M) each."""
        margin = self.margin * short_side // self.resolution
        length = randomness.integers(lengths, self.size[0], self.size[1] + 1)
        length = self._pixels(length, short_side).clamp(1, side - 2 * margin)
        beyond = (length * round(self.hang * 256)) >> 8
        first = margin - beyond
        return randomness.integers(places, first, side - margin - length + beyond + 1), length

    def _pixels(self, size: Size, short_side: int) -> Size:
        """A whole number of pixels at `resolution` as the nearest whole number of the image's."""
        return (size * (2 * short_side) + self.resolution) // (2 * self.resolution)
