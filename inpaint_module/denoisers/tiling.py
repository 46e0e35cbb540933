"""TiledCall: a denoiser sees a large picture in overlapping tiles, averaged at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from inpaint_module.denoisers.denoiser_call import DenoiserCall


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles start that cover 0..length, each overlapping the next by at least `overlap`, evenly spread."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def tile_weight(height: int, width: int) -> Tensor:
    """How much each cell of a tile counts: a pyramid, 1 in the middle, above 0 at the border; float32 (h, w)."""
    ramps = [1 - ((torch.arange(n) + 0.5) / n * 2 - 1).abs() for n in (height, width)]
    return ramps[0][:, None] * ramps[1]


class TiledCall(DenoiserCall):
    """Calls the denoiser on tiles of the latent grid and averages what it says of each cell.

    All tiles are denoised together, step by step, so that they agree: Bar-Tal et al. 2023, "MultiDiffusion: fusing
    diffusion paths for controlled image generation". A picture of one tile or less is one call.

    Args:
        call: how the denoiser is called.
        tile: side of a tile in latent cells.
        overlap: cells that two tiles share at least.

    Raises:
        ValueError: an overlap that is not 0 to half a tile.
    """

    def __init__(self, call: DenoiserCall, *, tile: int, overlap: int) -> None:
        if not 0 <= overlap <= tile // 2:
            raise ValueError(f"tile overlap: expected 0 to {tile // 2}, half a tile, got {overlap}")
        self.call, self.tile, self.overlap = call, tile, overlap

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See the class; (B, C, h, w).

        Raises:
            ValueError: tokens instead of a latent grid.
        """
        if max(size) <= self.tile:
            return self.call(denoiser, inputs, timesteps, conditions, size)
        if inputs.ndim != 4:
            raise ValueError(
                f"tiles: expected inputs (B, channels, h, w), got {tuple(inputs.shape)}: a denoiser of tokens, such as "
                f"Flux, takes a picture whole; use a tile of at least {max(size)} latent cells"
            )
        parts, weights = [], torch.zeros(size, device=inputs.device)
        starts = [tile_starts(side, self.tile, self.overlap) for side in size]
        for top, left in product(*starts):
            box = (..., slice(top, top + self.tile), slice(left, left + self.tile))
            part = inputs[box]
            said = self.call(denoiser, part, timesteps, conditions, (part.shape[-2], part.shape[-1])).float()
            weight = tile_weight(*said.shape[-2:]).to(said.device)
            weights[box] += weight
            parts.append((box, said * weight))
        total = parts[0][1].new_zeros(*parts[0][1].shape[:2], *size)
        for box, said in parts:
            total[box] += said
        return total / weights
