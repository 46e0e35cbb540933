"""Random polygons."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import MaskGenerator, checked_range


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
        return masks.flatten(1).scatter(1, centre, True).view_as(masks)  # however thin, never empty

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
    line = torch.arange(len(x), device=x.device)[:, None, None] * height + row
    flips = torch.zeros(len(x) * height * width, dtype=torch.int16, device=x.device)
    place = line * width + column.clamp_max(width - 1)
    flips.scatter_add_(0, place.flatten(), (crosses & (column < width)).to(torch.int16).flatten())
    return (flips.view(len(x), 1, height, width).cumsum_(-1) & 1) == 1
