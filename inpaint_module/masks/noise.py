"""Smooth random fields in whole numbers, alike on every device, and their upper share."""

from __future__ import annotations

import torch
from torch import Tensor

from inpaint_module import randomness

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
        noise = _value_noise(randomness.fork(keys, octave), height, width, cells << octave)
        total = total + (noise >> (octave + 1))
    return total


def _value_noise(keys: Tensor, height: int, width: int, cells: int) -> Tensor:
    """Random numbers on a lattice, blended by smoothstep in between: int32 (B, H, W) in 0..2^21 - 1."""
    down, row, row_share = _lattice(height, cells, min(height, width), keys.device)
    along, column, column_share = _lattice(width, cells, min(height, width), keys.device)
    values = (randomness.draw(keys, down * along) >> 19).int().view(-1, down, along)  # 13 bits
    values = _blend(values[..., column], values[..., column + 1], column_share)  # 21 bits
    return _blend(values[:, row], values[:, row + 1], row_share[:, None]) >> 8


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

    The threshold is found bit by bit: one count of pixels for each of the field's bits, no sorting.

    Args:
        field: int32 (B, H, W) in 0..2^21 - 1.
        share: float64 (B,) in 0..1.

    Returns:
        bool (B, 1, H, W), at least one pixel each.
    """
    wanted = (share * field[0].numel()).long().clamp_min(1)
    threshold = torch.zeros(len(field), 1, 1, dtype=torch.int32, device=field.device)
    for bit in reversed(range(FIELD_BITS)):
        higher = threshold + (1 << bit)
        enough = (field >= higher).flatten(1).sum(1, dtype=torch.int32) >= wanted
        threshold = torch.where(enough[:, None, None], higher, threshold)
    return (field >= threshold)[:, None]
