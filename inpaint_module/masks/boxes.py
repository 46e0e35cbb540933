"""Random boxes."""

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
        left, box_width = self._spans(across, left, width, scale)
        top, box_height = self._spans(down, top, height, scale)
        is_round = round_ < round(self.rounded * 2**32)
        box_height = torch.where(is_round, box_width, box_height)
        marks = painter.boxes(left, top, box_width, box_height, visible)
        radius = randomness.integers(corner, self.corner[0], self.corner[1] + 1).float()
        radius = torch.minimum(radius * (scale.short_side / scale.resolution), marks.along)
        # of a square of 2 pixels, round corners would leave nothing
        marks = painter.with_radius(marks, torch.where(is_round & (marks.along >= 1), radius, marks.radius))
        return painter.paint(marks, height, width, scale.pixels(self.size[1]))

    def _spans(self, lengths: Tensor, places: Tensor, side: int, scale: _Scale) -> tuple[Tensor, Tensor]:
        """Where the boxes begin along one side of the image, and how long they are: int64 pixels (B, M) each."""
        margin = min(self.margin * scale.short_side // scale.resolution, (side - 1) // 2)
        longest = max(self.size[0], min(self.size[1], scale.resolution - 2 * self.margin))
        length = scale.pixels(randomness.integers(lengths, self.size[0], longest + 1)).clamp(1, side - 2 * margin)
        beyond = (length * round(self.hang * 256)) >> 8
        first = margin - beyond
        return randomness.integers(places, first, side - margin - length + beyond + 1), length


class _Scale(NamedTuple):
    """The short side of an image, and the one at which sizes are given."""

    short_side: int
    resolution: int

    def pixels(self, size: Size) -> Size:
        """A whole number of pixels at the resolution as the nearest whole number of the image's."""
        return (size * (2 * self.short_side) + self.resolution) // (2 * self.resolution)
