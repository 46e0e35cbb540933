"""Free-form brush strokes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks import painter
from inpaint_module.masks.generator import MaskGenerator, checked_at_least, checked_range, pixel_scale
from inpaint_module.masks.strokes import walk


class FreeForm(MaskGenerator):
    """Zigzag brush strokes of one width, as DeepFill v2's free-form masks (Yu et al. 2019, algorithm 1).

    The direction alternates between the angles +a and -a from the horizontal, a within 2 pi / 15 of 2 pi / 5 with its
    own bounds for each stroke; a step is N(R, R / 2) within 0..2 R, where R is an eighth of the image's diagonal, and
    is clipped to the image. Each mask is flipped, left to right and upside down, with probability 1/2 each.

    Args:
        count: fewest and most strokes of a mask; from 0 on, masks may be empty.
        turns: fewest and most segments of a stroke; a stroke of none is a dot.
        width: thinnest and thickest stroke in pixels at `resolution`.
        resolution: short side of the image at which the widths hold; None: the widths are pixels of any image.

    Raises:
        ValueError: a bound out of order or too low.
    """

    def __init__(
        self,
        count: tuple[int, int] = (1, 3),
        turns: tuple[int, int] = (4, 11),
        width: tuple[int, int] = (12, 39),
        *,
        resolution: int | None = 256,
    ):
        checked_range("count", count, 0)
        checked_range("turns", turns, 0)
        checked_range("width", width, 1)
        checked_at_least(1, resolution=resolution)
        self.count, self.turns, self.width, self.resolution = count, turns, width, resolution

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        most, long, scale = self.count[1], max(1, self.turns[1]), pixel_scale(self.resolution, height, width)
        words = randomness.draw(keys, 3 + most * (6 + long))
        number = randomness.integers(words[:, :1], self.count[0], most + 1)
        mirrored, flipped = (words[:, i, None, None] < 2**31 for i in (1, 2))
        first, turns = words[:, 3:].split([6 * most, most * long], 1)
        x, y, turn_count, thick, narrow, wide = first.unflatten(1, (6, most)).unbind(1)
        angle = _angles(turns.unflatten(1, (most, long)), narrow, wide)
        length = self._lengths(keys, words.shape[1], angle.shape[1:], math.hypot(height, width) / 8)
        dx, dy = (angle.cos().float() * length, angle.sin().float() * length)
        steps = torch.stack([torch.where(mirrored, -dx, dx), torch.where(flipped, -dy, dy)], -1)
        start = torch.stack([randomness.integers(x, 0, width), randomness.integers(y, 0, height)], -1).float()
        points = walk(start, steps, height, width)
        turn_count = randomness.integers(turn_count, self.turns[0], self.turns[1] + 1)[..., None]
        nth = torch.arange(long, device=keys.device)
        drawn = (torch.arange(most, device=keys.device) < number)[..., None] & (nth < turn_count.clamp_min(1))
        end = torch.where((turn_count > 0)[..., None], points[..., 1:, :], points[..., :-1, :])
        brush = (randomness.integers(thick, self.width[0], self.width[1] + 1).float() * scale).clamp_min(1)
        brush, start = brush[..., None].expand_as(length), points[..., :-1, :]
        marks = painter.strokes(start.flatten(1, 2), end.flatten(1, 2), brush.flatten(1), drawn.flatten(1))
        reach = math.hypot(height, width) / 4 + max(1, self.width[1] * scale)
        return painter.paint(marks, height, width, int(reach) + 3)

    def _lengths(self, keys: Tensor, offset: int, shape: torch.Size, radius: float) -> Tensor:
        """Lengths of all steps: float32 (B, *shape)."""
        return (randomness.normal(keys, tuple(shape), offset) * (radius / 2) + radius).clamp(0, 2 * radius)


def _angles(turns: Tensor, narrow: Tensor, wide: Tensor) -> Tensor:
    """Directions of steps: words (B, M, S), (B, M) and (B, M) to radians, float64 (B, M, S)."""
    middle, spread = 2 * math.pi / 5, 2 * math.pi / 15 * 2.0**-32
    low, high = (middle - narrow.double() * spread)[..., None], (middle + wide.double() * spread)[..., None]
    angle = low + (high - low) * (turns.double() * 2.0**-32)
    return torch.where(torch.arange(turns.shape[-1], device=turns.device) % 2 == 0, -angle, angle)
