"""The random numbers of one position: functions of (seed, position, purpose), so that no worker or restart moves them.

A worker asks for one position at a time, and a torch call costs more than the number: 64 positions are drawn at once.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from inpaint_module.randomness import Stream, fork, key, uniform

_BLOCK = 64


def _positions(block: int) -> Tensor:
    return torch.arange(block * _BLOCK, (block + 1) * _BLOCK)


@lru_cache(maxsize=32)
def _block(seed: int, block: int, stream: Stream, count: int) -> list[list[float]]:
    return uniform(key(seed, _positions(block), stream), count).tolist()


@lru_cache(maxsize=8)
def _seeds(seed: int, block: int, stream: Stream, branch: int) -> list[int]:
    return fork(key(seed, _positions(block), stream), branch).tolist()


def position_draws(seed: int, position: int, stream: Stream, count: int) -> list[float]:
    """`count` numbers in [0, 1): row `position` of `uniform(key(seed, positions, stream), count)`."""
    return _block(seed, position // _BLOCK, stream, count)[position % _BLOCK]


def position_seed(seed: int, position: int, stream: Stream, branch: int) -> int:
    """63 random bits to seed a generator with: row `position` of `fork(key(seed, positions, stream), branch)`."""
    return _seeds(seed, position // _BLOCK, stream, branch)[position % _BLOCK]
