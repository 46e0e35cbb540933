"""Random brush strokes."""

from __future__ import annotations

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks import painter
from inpaint_module.masks.generator import MaskGenerator, checked_range, scaled


class Strokes(MaskGenerator):
    """Chains of round-ended brush segments, as LaMa's irregular masks (Suvorov et al. 2022, section 3.3).

    Each stroke starts at a uniform point; each segment goes on from the end of the one before, in a direction of
    0.01 + {0, .., directions - 1} radians from the vertical, mirrored for every second stroke, and is clipped to the
    image.

    Args:
        count: fewest and most strokes of a mask.
        length: shortest and longest segment in pixels at `resolution`.
        width: thinnest and thickest segment in pixels at `resolution`.
        segments: most segments of a stroke; the number is uniform in 1..segments.
        directions: number of directions.
        resolution: short side of the image at which the sizes hold.

    Raises:
        ValueError: a bound out of order or below 1.
    """

    def __init__(
        self,
        count: tuple[int, int] = (1, 5),
        length: tuple[int, int] = (10, 200),
        width: tuple[int, int] = (5, 100),
        *,
        segments: int = 5,
        directions: int = 4,
        resolution: int = 256,
    ):
        for name, bounds in (("count", count), ("length", length), ("width", width)):
            checked_range(name, bounds, 1)
        for name, number in (("segments", segments), ("directions", directions), ("resolution", resolution)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.count, self.length, self.width = count, length, width
        self.segments, self.directions, self.resolution = segments, directions, resolution

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        most, short_side = self.count[1], min(height, width)
        words = randomness.draw(keys, 1 + most * (3 + 3 * self.segments))
        visible = torch.arange(most, device=keys.device) < randomness.integers(words[:, :1], self.count[0], most + 1)
        x, y, number, *rest = words[:, 1:].unflatten(1, (3 + 3 * self.segments, most)).unbind(1)
        directions, lengths, widths = torch.stack(rest, -1).unflatten(-1, (3, self.segments)).unbind(-2)
        steps = self._steps(directions, lengths, short_side)
        start = torch.stack([randomness.integers(x, 0, width), randomness.integers(y, 0, height)], -1).float()
        ends = _walk(start, steps, steps.new_tensor([width - 1, height - 1]))
        thick = randomness.integers(widths, *self._bounds(self.width, short_side)).float()
        drawn = visible[..., None] & (
            torch.arange(self.segments, device=keys.device) <= randomness.integers(number, 0, self.segments)[..., None]
        )
        marks = painter.strokes(
            ends[..., :-1, :].flatten(1, 2), ends[..., 1:, :].flatten(1, 2), thick.flatten(1), drawn.flatten(1)
        )
        longest = scaled(self.length[1], self.resolution, short_side) + scaled(
            self.width[1], self.resolution, short_side
        )
        return painter.paint(marks, height, width, longest + 2)

    def _steps(self, directions: Tensor, lengths: Tensor, short_side: int) -> Tensor:
        """Each segment as a vector: words (B, M, segments) twice to float32 (B, M, segments, 2)."""
        angle = 0.01 + randomness.integers(directions, 0, self.directions).double()
        mirrored = torch.arange(angle.shape[1], device=angle.device)[:, None] % 2 == 0
        angle = torch.where(mirrored, -angle, angle)
        length = randomness.integers(lengths, *self._bounds(self.length, short_side)).float()
        return torch.stack([angle.sin().float() * length, angle.cos().float() * length], -1)

    def _bounds(self, bounds: tuple[int, int], short_side: int) -> tuple[int, int]:
        low, high = (scaled(bound, self.resolution, short_side) for bound in bounds)
        return low, high + 1


def _walk(start: Tensor, steps: Tensor, corner: Tensor) -> Tensor:
    """Points of a walk that the image holds in: (B, M, 2) and (B, M, S, 2) to (B, M, S + 1, 2)."""
    points = [start]
    for step in steps.unbind(-2):
        points.append(torch.minimum((points[-1] + step).clamp_min(0), corner))
    return torch.stack(points, -2)
