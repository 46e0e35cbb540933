"""Tiles: they cover everything, and a denoiser that looks at single cells gives the same with and without them."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inpaint_module.base_models import DenoiserCall, TiledCall, tile_starts, tile_weight


class Pointwise(nn.Module):
    """Looks at one cell and remembers what sizes it was called with."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.sizes = nn.Conv2d(3, 2, 1), []

    def forward(self, inputs: Tensor, timesteps: Tensor) -> Any:
        self.sizes.append(tuple(inputs.shape[-2:]))
        return SimpleNamespace(sample=self.layer(inputs) * timesteps[:, None, None, None])


@pytest.mark.parametrize(
    ("length", "tile", "overlap", "starts"),
    [(8, 8, 2, [0]), (5, 8, 2, [0]), (9, 8, 2, [0, 1]), (20, 8, 2, [0, 6, 12]), (21, 8, 2, [0, 4, 9, 13])],
)
def test_starts(length: int, tile: int, overlap: int, starts: list[int]) -> None:
    assert tile_starts(length, tile, overlap) == starts


def test_starts_cover_with_their_overlap() -> None:
    for length in range(1, 70):
        for tile, overlap in ((8, 0), (8, 4), (5, 2)):
            starts = tile_starts(length, tile, overlap)
            assert starts[0] == 0
            assert length <= tile or starts[-1] + tile == length
            assert all(b - a <= tile - overlap for a, b in pairwise(starts))


def test_weights_are_a_pyramid() -> None:
    assert torch.allclose(tile_weight(1, 4), torch.tensor([[0.25, 0.75, 0.75, 0.25]]))


@torch.no_grad()
def test_a_pointwise_denoiser_says_the_same() -> None:
    denoiser, inputs, timesteps = Pointwise(), torch.randn(2, 3, 21, 9), torch.tensor([1.0, 2.0])
    whole = DenoiserCall()(denoiser, inputs, timesteps, {}, (21, 9))
    tiled = TiledCall(DenoiserCall(), tile=8, overlap=2)(denoiser, inputs, timesteps, {}, (21, 9))
    assert torch.allclose(tiled, whole, atol=1e-6)
    assert denoiser.sizes == [(21, 9), *[(8, 8)] * 8]


@torch.no_grad()
def test_a_small_picture_is_one_call() -> None:
    denoiser, inputs = Pointwise(), torch.randn(1, 3, 8, 6)
    TiledCall(DenoiserCall(), tile=8, overlap=2)(denoiser, inputs, torch.ones(1), {}, (8, 6))
    assert denoiser.sizes == [(8, 6)]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="tile overlap: expected 0 to 4, half a tile, got 5"):
        TiledCall(DenoiserCall(), tile=8, overlap=5)
    with pytest.raises(ValueError, match=r"expected inputs \(B, channels, h, w\), got \(1, 64, 3\)"):
        TiledCall(DenoiserCall(), tile=4, overlap=1)(Pointwise(), torch.zeros(1, 64, 3), torch.ones(1), {}, (16, 16))
