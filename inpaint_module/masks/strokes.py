"""Chains of random brush strokes."""

from __future__ import annotations

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks import painter
from inpaint_module.masks.generator import MaskGenerator, checked_at_least, checked_range, checked_share, pixel_scale

# OpenCV paints a polygon 2 floor((width + 1) / 2) across, its border included: in all directions 0.8 pixels more
_OPENCV_EDGE = 0.8


class Strokes(MaskGenerator):
    """Chains of round-ended brush segments, as LaMa's irregular masks (Suvorov et al. 2022, section 3.3).

    Each stroke starts at a uniform point; each segment goes on from the end of the one before, in a direction of
    0.01 + {0, .., directions - 1} radians from the vertical, mirrored for every second stroke, and is clipped to the
    image.

    Args:
        count: fewest and most strokes of a mask; from 0 on, masks may be empty.
        length: shortest and longest segment in pixels at `resolution`.
        width: thinnest and thickest segment in pixels at `resolution`; at least 1 pixel of the image.
        segments: most segments of a stroke; the number is uniform in 1..segments.
        directions: number of directions.
        discs: probability that a segment is a disc at its start instead, its radius the segment's width.
        squares: probability that it is an upright square there, its side the segment's width.
        resolution: short side of the image at which the sizes hold; None: the sizes are pixels of any image.
        opencv: segments are as wide as OpenCV's `line`, with which LaMa paints: 2 floor((width + 1) / 2) + 0.8 pixels
            at `resolution`, one or two more than asked for. False: exactly as wide as drawn.

    Raises:
        ValueError: a bound out of order or too low, or probabilities beyond 0..1.
    """

    def __init__(
        self,
        count: tuple[int, int] = (1, 5),
        length: tuple[int, int] = (10, 200),
        width: tuple[int, int] = (5, 100),
        *,
        segments: int = 5,
        directions: int = 4,
        discs: float = 0.0,
        squares: float = 0.0,
        resolution: int | None = 256,
        opencv: bool = False,
    ):
        checked_range("count", count, 0)
        checked_range("length", length, 1)
        checked_range("width", width, 1)
        checked_at_least(1, segments=segments, directions=directions, resolution=resolution)
        checked_share(discs=discs, squares=squares, discs_and_squares=discs + squares)
        self.count, self.length, self.width = count, length, width
        self.segments, self.directions, self.resolution = segments, directions, resolution
        self.discs, self.squares, self.opencv = discs, squares, opencv

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        most, scale = self.count[1], pixel_scale(self.resolution, height, width)
        words = randomness.draw(keys, 1 + most * (3 + 4 * self.segments))
        visible = torch.arange(most, device=keys.device) < randomness.integers(words[:, :1], self.count[0], most + 1)
        first, rest = words[:, 1:].split([3 * most, 4 * most * self.segments], 1)
        x, y, number = first.unflatten(1, (3, most)).unbind(1)
        directions, lengths, widths, kinds = rest.unflatten(1, (4, most, self.segments)).unbind(1)
        start = torch.stack([randomness.integers(x, 0, width), randomness.integers(y, 0, height)], -1).float()
        angle = 0.01 + randomness.integers(directions, 0, self.directions).double()
        length = randomness.integers(lengths, self.length[0], self.length[1] + 1).float() * scale
        thick = randomness.integers(widths, self.width[0], self.width[1] + 1).float()
        segment = torch.arange(self.segments, device=keys.device)
        drawn = visible[..., None] & (segment <= randomness.integers(number, 0, self.segments)[..., None])
        points = walk(start, _steps(angle, length), height, width)
        marks = self._marks(points, thick, scale, drawn, kinds)
        longest = max(self.length[1] + self.width[1] + 2, 2 * self.width[1] if self.discs else 0)
        return painter.paint(marks, height, width, int(longest * scale) + 3)

    def _marks(self, points: Tensor, width: Tensor, scale: float, drawn: Tensor, kinds: Tensor) -> painter.Marks:
        """The segments of all strokes side by side; `width` in pixels at the resolution."""
        start, end = points[..., :-1, :].flatten(1, 2), points[..., 1:, :].flatten(1, 2)
        width, drawn, kinds = width.flatten(1), drawn.flatten(1), kinds.flatten(1)
        across = 2 * ((width + 1) / 2).floor() + _OPENCV_EDGE if self.opencv else width
        lines = painter.strokes(start, end, (across * scale).clamp_min(1), drawn)
        if not self.discs and not self.squares:
            return lines
        thick = (width * scale).clamp_min(1)
        is_disc = kinds < round(self.discs * 2**32)
        is_square = ~is_disc & (kinds < round((self.discs + self.squares) * 2**32))
        half = torch.where(is_square, thick / 2, thick)
        dots = painter.strokes(start, start, 2 * half, drawn)
        dots = painter.with_radius(dots, torch.where(is_square, 0.0, half))
        dotted = is_disc | is_square
        return painter.Marks(*(torch.where(dotted, dot, line) for dot, line in zip(dots, lines, strict=True)))


def walk(start: Tensor, steps: Tensor, height: int, width: int) -> Tensor:
    """Points of walks that the image holds in: (..., 2) and (..., S, 2) to (..., S + 1, 2), x before y.

    A loop over the steps of a walk, each of which needs the one before; all walks of all samples go at once.
    """
    points = [start]
    for step in steps.unbind(-2):
        x, y = (points[-1] + step).unbind(-1)
        points.append(torch.stack([x.clamp(0, width - 1), y.clamp(0, height - 1)], -1))
    return torch.stack(points, -2)


def _steps(angle: Tensor, length: Tensor) -> Tensor:
    """Each segment as a vector: radians float64 and pixels float32, (B, M, S) each, to float32 (B, M, S, 2)."""
    mirrored = torch.arange(angle.shape[1], device=angle.device)[:, None] % 2 == 0
    angle = torch.where(mirrored, -angle, angle)
    return torch.stack([angle.sin().float() * length, angle.cos().float() * length], -1)
