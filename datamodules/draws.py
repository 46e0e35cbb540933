"""The random numbers of one position: functions of (seed, position, purpose), so that no worker or restart moves them.

A worker asks for one position at a time, and a torch call costs more than the number: 64 positions are drawn at once.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from inpaint_module.randomness import Stream, key, uniform

_BLOCK = 64


@lru_cache(maxsize=32)
def _block(seed: int, block: int, stream: Stream, count: int) -> list[list[float]]:
    positions = torch.arange(block * _BLOCK, (block + 1) * _BLOCK)
    return uniform(key(seed, positions, stream), count).tolist()


def position_draws(seed: int, position: int, stream: Stream, count: int) -> list[float]:
    """`count` numbers in [0, 1): row `position` of `uniform(key(seed, positions, stream), count)`."""
    return _block(seed, position // _BLOCK, stream, count)[position % _BLOCK]
