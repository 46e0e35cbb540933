"""Random boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks import painter
from inpaint_module.masks.generator import MaskGenerator, checked_range, scaled


class Boxes(MaskGenerator):
    """Axis-parallel boxes at uniform places, as LaMa's box masks (Suvorov et al. 2022, section 3.3).

    Args:
        count: fewest and most boxes of a mask.
        size: shortest and longest side in pixels at `resolution`.
        margin: least distance of a box from the border, in pixels at `resolution`.
        resolution: short side of the image at which the sizes hold.

    Raises:
        ValueError: a bound out of order, below 1, or a margin that leaves no room.
    """

    def __init__(
        self,
        count: tuple[int, int] = (1, 4),
        size: tuple[int, int] = (30, 150),
        *,
        margin: int = 10,
        resolution: int = 256,
    ):
        checked_range("count", count, 1)
        checked_range("size", size, 1)
        if not 0 <= 2 * margin < resolution:
            raise ValueError(f"margin must be in 0..{(resolution - 1) // 2} at resolution {resolution}, got {margin}")
        self.count, self.size, self.margin, self.resolution = count, size, margin, resolution

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        most = self.count[1]
        words = randomness.draw(keys, 1 + 4 * most)
        number = randomness.integers(words[:, :1], self.count[0], most + 1)
        across, left, down, top = words[:, 1:].unflatten(1, (4, most)).unbind(1)
        left, box_width = self._spans(across, left, width, min(height, width))
        top, box_height = self._spans(down, top, height, min(height, width))
        visible = torch.arange(most, device=keys.device) < number
        longest = scaled(self.size[1], self.resolution, min(height, width))
        return painter.paint(painter.boxes(left, top, box_width, box_height, visible), height, width, longest)

    def _spans(self, lengths: Tensor, places: Tensor, side: int, short_side: int) -> tuple[Tensor, Tensor]:
        """Where the boxes begin along one side of the image, and how long they are: int64 pixels (B, M) each."""
        low, high = (scaled(bound, self.resolution, short_side) for bound in self.size)
        margin = self.margin * short_side // self.resolution
        length = randomness.integers(lengths, low, high + 1).clamp_max(side - 2 * margin)
        return margin + randomness.integers(places, 0, side - 2 * margin - length + 1), length
