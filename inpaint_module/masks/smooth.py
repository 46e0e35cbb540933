"""Masks with smooth borders, from random fields in whole numbers, which are alike on every device: clouds, and blobs,
which are warped ellipses."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import (
    MaskGenerator,
    cheap_to_read,
    checked_at_least,
    checked_range,
    in_groups,
    square_root,
)

FIELD_BITS = 21  # fields lie in 0 .. 2^21 - 1


def fractal_noise(keys: Tensor, height: int, width: int, cells: int, octaves: int) -> Tensor:
    """Fractional Brownian motion: value noise, every octave twice as fine and half as strong (Perlin 1985).

    Args:
        keys: int64 (B,).
        height: H.
        width: W.
        cells: lattice cells along the short side in the first octave.
        octaves: number of octaves.

    Returns:
        int32 (B, H, W) in 0..2^21 - 1.
    """
    total = torch.zeros(len(keys), height, width, dtype=torch.int32, device=keys.device)
    for octave in range(octaves):
        lines = _noise_lines(randomness.fold_in(keys, octave), height, width, cells << octave)
        _, row, share = _lattice(height, cells << octave, min(height, width), keys.device)
        if cheap_to_read(keys):
            _add_blended(total.numpy(), lines.numpy(), row.numpy(), share.numpy(), octave + 9)
        else:
            total = total + (_blend(lines[:, row], lines[:, row + 1], share[:, None]) >> (octave + 9))
    return total


def _noise_lines(keys: Tensor, height: int, width: int, cells: int) -> Tensor:
    """Value noise: random numbers on a lattice, blended by smoothstep along its rows: int32 (B, rows, W) of 21 bits."""
    down, _, _ = _lattice(height, cells, min(height, width), keys.device)
    along, column, share = _lattice(width, cells, min(height, width), keys.device)
    values = (randomness.draw(keys, down * along) >> 19).int().view(-1, down, along)  # 13 bits
    return _blend(values[..., column], values[..., column + 1], share)


def _add_blended(total: np.ndarray, lines: np.ndarray, row: np.ndarray, share: np.ndarray, shift: int) -> None:
    """What the torch operations in `fractal_noise` do, on a CPU: mask by mask in its cache, 5 times faster."""
    for field, of_lattice in zip(total, lines, strict=True):
        noise = (of_lattice[1:] - of_lattice[:-1])[row]
        noise *= share[:, None]
        noise += (of_lattice << 8)[row]
        noise >>= shift
        field += noise


def _lattice(side: int, cells: int, short_side: int, device: torch.device) -> tuple[int, Tensor, Tensor]:
    """Lattice points along one side of the image, and for its pixels the point before and the way on, int32 0..256."""
    place = torch.arange(side, device=device) * (cells * 256) // short_side
    way = (place & 255).int()
    smooth = (way * way * (768 - 2 * way)) >> 16
    return (side - 1) * cells // short_side + 2, place >> 8, smooth


def _blend(before: Tensor, after: Tensor, share: Tensor) -> Tensor:
    return (before << 8) + (after - before) * share


def highest_share(field: Tensor, share: Tensor) -> Tensor:
    """The pixels where a field is highest, as many as asked for but for ties at the border.

    The threshold is found bit by bit: one count of pixels for each of the field's bits, no sorting. On a CPU numpy
    selects it, in a fraction of the time.

    Args:
        field: int32 (B, H, W) in 0..2^21 - 1.
        share: float64 (B,) in 0..1.

    Returns:
        bool (B, 1, H, W), at least one pixel each.
    """
    wanted = (share * field[0].numel()).long().clamp_min(1)
    if cheap_to_read(field):
        return (field >= _nth_highest(field, wanted)[:, None, None])[:, None]
    threshold = torch.zeros(len(field), 1, 1, dtype=torch.int32, device=field.device)
    for bit in reversed(range(FIELD_BITS)):
        higher = threshold + (1 << bit)
        enough = (field >= higher).flatten(1).sum(1, dtype=torch.int32) >= wanted
        threshold = torch.where(enough[:, None, None], higher, threshold)
    return (field >= threshold)[:, None]


def _nth_highest(field: Tensor, place: Tensor) -> Tensor:
    """The value at that place, from 1 on, of each field from the highest down, within 0..2^21 - 1: int32 (B,)."""
    places = [each.numel() - int(nth) for each, nth in zip(field, place, strict=True)]
    found = [np.partition(each.numpy(), nth)[nth] for each, nth in zip(field.flatten(1), places, strict=True)]
    return torch.from_numpy(np.array(found, np.int32)).clamp(0, 2**FIELD_BITS - 1)


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
        field = fractal_noise(randomness.fold_in(keys, 0), height, width, self.cells, self.octaves)
        return highest_share(field, self.share[0] + lot * (self.share[1] - self.share[0]))


class Blob(MaskGenerator):
    """An ellipse at a random place and angle, warped by smooth noise, as in ai-toolkit.

    The pixels are ranked by their distance from the centre, measured along the ellipse's axes plus noise; the nearest
    ones are masked, as many as the drawn share of the image asks for.

    Args:
        share: least and greatest masked part of the image, within 0..1; at least one pixel.
        stretch: least and greatest ratio of the ellipse's axes, at least 1.
        warp: how far the noise moves the border, as a share of the image's short side; 0 for clean ellipses.
        cells: bumps of the noise along the short side.

    Raises:
        ValueError: a bound out of order or beyond its range, or a negative warp.
    """

    def __init__(
        self,
        share: tuple[float, float] = (0.2, 0.8),
        *,
        stretch: tuple[float, float] = (1.0, 2.0),
        warp: float = 0.3,
        cells: int = 3,
    ):
        checked_range("share", share, 0, 1)
        checked_range("stretch", stretch, 1)
        checked_at_least(1, cells=cells)
        if warp < 0:
            raise ValueError(f"warp must be at least 0, got {warp}")
        self.share, self.stretch, self.warp, self.cells = share, stretch, warp, cells

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        return in_groups(lambda part: self._paint_group(part, height, width), keys, height * width)

    def _paint_group(self, keys: Tensor, height: int, width: int) -> Tensor:
        lots = randomness.draw(keys, 5).double() * 2.0**-32
        x, y, turn, stretch, share = lots.unbind(1)
        angle = turn * math.pi
        cos, sin = angle.cos().float()[:, None, None], angle.sin().float()[:, None, None]
        across = torch.arange(width, device=keys.device) - (x * width).float()[:, None, None]
        down = torch.arange(height, device=keys.device)[:, None] - (y * height).float()[:, None, None]
        stretch = (self.stretch[0] + stretch * (self.stretch[1] - self.stretch[0])).float()[:, None, None]
        u, v = cos * across + sin * down, (cos * down - sin * across) * stretch
        noise = fractal_noise(randomness.fold_in(keys, 0), height, width, self.cells, 2).float()
        distance = square_root(u * u + v * v) + noise * (self.warp * min(height, width) * 2.0**-FIELD_BITS)
        farthest = self.stretch[1] * math.hypot(height, width) + self.warp * min(height, width) + 1
        field = ((farthest - distance) * (2**FIELD_BITS / farthest)).int()
        return highest_share(field, self.share[0] + share * (self.share[1] - self.share[0]))
