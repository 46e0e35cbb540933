"""Masks of shapes that are drawn one by one: straight lines, polygons, DeepFill's zigzag strokes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks import painter
from inpaint_module.masks.generator import MaskGenerator, cheap_to_read, checked_at_least, checked_range, pixel_scale
from inpaint_module.masks.strokes import walk


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


class Polygon(MaskGenerator):
    """A star-shaped polygon around a uniform point of the image, as in sd-scripts' and ai-toolkit's masks.

    The corners lie in equal sectors, each at a uniform angle within the middle four fifths of its sector and at
    40..100 % of the radius, which is what the drawn area asks for. What lies beyond the border is lost, so that masks
    cover less than that; `CoverageBetween` bounds what is left.

    Args:
        corners: fewest and most corners, at least 3.
        share: least and greatest area of the polygon as a part of the image's, within 0..1.

    Raises:
        ValueError: a bound out of order or beyond its range.
    """

    def __init__(self, corners: tuple[int, int] = (3, 12), share: tuple[float, float] = (0.1, 0.6)):
        checked_range("corners", corners, 3)
        checked_range("share", share, 0, 1)
        self.corners, self.share = corners, share

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        words = randomness.draw(keys, 4 + 2 * self.corners[1])
        lots = words.double() * 2.0**-32
        number = randomness.integers(words[:, :1], self.corners[0], self.corners[1] + 1)
        area = (self.share[0] + lots[:, 3:4] * (self.share[1] - self.share[0])) * (height * width)
        x, y = self._corners(lots[:, 4:], number, area)
        centre_x, centre_y = (lots[:, 1:2] * width).floor(), (lots[:, 2:3] * height).floor()
        masks = fill_polygons((centre_x + x).float(), (centre_y + y).float(), number, height, width)
        centre = (centre_y * width + centre_x).long()
        masks.view(len(masks), -1).scatter_(1, centre, True)
        return masks  # however thin, never empty

    def _corners(self, lots: Tensor, number: Tensor, area: Tensor) -> tuple[Tensor, Tensor]:
        """Places about the centre: float64 (B, K) twice; those past `number` repeat the first corner."""
        turn, radius = lots.unflatten(1, (2, -1)).unbind(1)
        nth = torch.arange(turn.shape[1], device=lots.device)
        nth = torch.where(nth < number, nth, 0)
        angle = (nth + 0.1 + 0.8 * turn.gather(1, nth)) * (2 * math.pi / number)
        radius = 0.4 + 0.6 * radius.gather(1, nth)
        x, y = radius * angle.cos(), radius * angle.sin()
        unit = ((x * y.roll(-1, 1) - y * x.roll(-1, 1)).sum(1, keepdim=True) / 2).abs()
        scale = (area / unit.clamp_min(0.05)).sqrt()
        return x * scale, y * scale


def fill_polygons(x: Tensor, y: Tensor, number: Tensor, height: int, width: int) -> Tensor:
    """Polygons by the even-odd rule, one per sample.

    Each edge meets a row at most once; every crossing flips what is to the right of it, so that the parity of a
    cumulative sum along the row is the polygon.

    Args:
        x: corners, float32 (B, K).
        y: corners, float32 (B, K).
        number: int64 (B, 1), how many of them count; the last is joined to the first.
        height: H.
        width: W.

    Returns:
        bool (B, 1, H, W). A pixel is in a polygon when its centre is.
    """
    nth = torch.arange(x.shape[1], device=x.device)
    following = torch.where(nth + 1 < number, nth + 1, 0)
    x0, y0, x1, y1 = (v[..., None] for v in (x, y, x.gather(1, following), y.gather(1, following)))
    row = torch.arange(height, device=x.device)
    crosses = ((y0 <= row) != (y1 <= row)) & (nth < number)[..., None]
    slope = (x1 - x0) / torch.where(y1 == y0, 1.0, y1 - y0)
    column = (x0 + (row - y0) * slope).ceil().clamp(0, width).long()
    line = (torch.arange(len(x), device=x.device)[:, None, None] * height + row) * width
    if cheap_to_read(x):  # every row is crossed an even number of times: past its last column it is outside again
        return painter.between((line + column)[crosses].numpy(), (len(x), 1, height, width))
    flips = torch.zeros(len(x) * height * width, dtype=torch.int32, device=x.device)
    place = line + column.clamp_max(width - 1)
    flips.scatter_add_(0, place.flatten(), (crosses & (column < width)).to(torch.int32).flatten())
    return (flips.view(len(x), 1, height, width).cumsum_(-1, dtype=torch.int32) & 1) == 1


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
