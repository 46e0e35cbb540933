"""Counter-based randomness: every draw is a pure function of integer keys, with the same bits on every device.

A `torch.Generator` gives other numbers on a GPU than on a CPU, and other numbers when the batch is split. Here a
draw is a hash of (key, counter): no state, no order of calls, one row per sample.

All hashing is 32-bit PCG (RXS-M-XS; O'Neill 2014, "PCG", section 5.5; Jarzynski and Olano 2020) carried in int64:
every product stays under 2^62, so that no operation depends on how a device treats overflow. On a GPU one kernel does
the same in unsigned integers, see `_cuda_kernels`, and on a CPU numpy does, in 3 to 8 times less time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum, unique
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

_LOW32 = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # the golden ratio in 32 bits: tells the two words of a key apart
_Number = TypeVar("_Number", int, Tensor)

# in torch's own operations a hash is thirty launches of a kernel and a key is a hundred
_CUDA_HASH = """
template <typename T> T inpaint_pcg(T x) {
  const unsigned int state = (unsigned int)x * 747796405u + 2891336453u;
  const unsigned int word = ((state >> ((state >> 28) + 4u)) ^ state) * 277803737u;
  return (T)((word >> 22) ^ word);
}
template <typename T> T inpaint_hash32(T key, T counter) {
  const unsigned int first = (unsigned int)inpaint_pcg<T>(counter) ^ (unsigned int)key;
  return inpaint_pcg<T>((T)((unsigned int)inpaint_pcg<T>((T)first) + (unsigned int)(key >> 32)));
}
"""
_CUDA_KEY = """
template <typename T> T inpaint_key_part(T key, T part) {
  const T high = inpaint_hash32<T>(key, part ^ (T)0x9E3779B9) & (T)0x7FFFFFFF;
  return (high << 32) | inpaint_hash32<T>(key, part);
}
template <typename T> T inpaint_key(T position, T low, T high, T stream) {
  return inpaint_key_part<T>(inpaint_key_part<T>(inpaint_key_part<T>(position, low), high), stream);
}
"""


@unique
class Stream(IntEnum):
    """What a draw is for; one key never serves two purposes. The values are part of the sampling order: never reuse."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    MASK = 4
    NOISE = 5
    TIMESTEP = 6
    POSTERIOR = 7
    CAPTION = 8
    SAMPLER = 9
    BRANCH = 10
    OWN_MASK = 11
    REMOVAL = 12
    REMOVAL_MASK = 13
    SUBSTITUTE = 14
    CAPTION_DROP = 15
    TAGS = 16
    CONDITION_DROP = 17
    VALIDATION = 18


@cache
def _cuda_kernels() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Of `hash32` and `key`; torch's runtime compiler makes them at first use and needs none on the machine."""
    create = torch.cuda.jiterator._create_jit_fn  # beta in torch; tests/test_lightning_private.py looks for it
    return create(_CUDA_HASH), create(_CUDA_HASH + _CUDA_KEY, low=0, high=0, stream=0)


def _in_one_kernel(x: Tensor) -> bool:
    """Whether it is a plain tensor on a GPU and nobody traces: a compiler fuses the operations itself."""
    plain = type(x) is Tensor and x.is_cuda
    return plain and not torch.compiler.is_compiling() and hasattr(torch.cuda, "jiterator")


def _pcg(x: _Number) -> _Number:
    """One round of the 32-bit PCG hash, a bijection on 0..2^32-1 held in int64."""
    state = (x * 747796405 + 2891336453) & _LOW32
    word = (((state >> ((state >> 28) + 4)) ^ state) * 277803737) & _LOW32
    return (word >> 22) ^ word


def _by_numpy(x: Tensor) -> bool:
    """Whether it is a plain tensor on a CPU and nobody traces."""
    return type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()


def _pcg_words(x: np.ndarray) -> np.ndarray:
    """`_pcg` of an array of uint32, whose products numpy takes modulo 2^32."""
    state = x * np.uint32(747796405) + np.uint32(2891336453)
    word = ((state >> ((state >> np.uint32(28)) + np.uint32(4))) ^ state) * np.uint32(277803737)
    return (word >> np.uint32(22)) ^ word


def _mixed_words(keys: np.ndarray, bits: np.ndarray | np.uint32) -> np.ndarray:
    """`_mixed` of an array of int64, at least (1,): uint32."""
    return _pcg_words(_pcg_words(keys.astype(np.uint32) ^ bits) + (keys >> 32).astype(np.uint32))


def hash32(keys: Tensor, counter: Tensor) -> Tensor:
    """32 random bits for every (key, counter) pair.

    Args:
        keys: int64, any shape; all 64 bits count.
        counter: int64 in 0..2^32-1, broadcast against `keys`.

    Returns:
        int64 in 0..2^32-1, of the broadcast shape.
    """
    if _in_one_kernel(keys):
        return _cuda_kernels()[0](keys, counter)
    if _by_numpy(keys):
        rounds = _pcg_words(np.atleast_1d(counter.numpy()).astype(np.uint32))
        words = _mixed_words(np.atleast_1d(keys.numpy()), rounds).astype(np.int64)
        return torch.from_numpy(words).reshape(torch.broadcast_shapes(keys.shape, counter.shape))
    return _mixed(keys, _pcg(counter & _LOW32))


def _mixed(keys: Tensor, bits: Tensor | int) -> Tensor:
    """The rounds after the counter's."""
    mixed = _pcg((keys & _LOW32) ^ bits)
    return _pcg((mixed + ((keys >> 32) & _LOW32)) & _LOW32)


def key(seed: int, positions: Tensor, stream: Stream) -> Tensor:
    """The key of each sample for one purpose.

    Args:
        seed: the run's seed, any int.
        positions: int64 (B,), positions in the stream.
        stream: what the draws are for.

    Returns:
        int64 (B,), non-negative, 63 well-mixed bits.

    Example:
        >>> keys = key(0, torch.arange(4), Stream.NOISE)
        >>> torch.equal(normal(keys, (2, 3))[2:], normal(keys[2:], (2, 3)))  # in any batch the same noise
        True
    """
    parts = {"low": seed & _LOW32, "high": (seed >> 32) & _LOW32, "stream": int(stream)}
    if _in_one_kernel(positions):
        return _cuda_kernels()[1](positions, **parts)
    if _by_numpy(positions):
        made = np.atleast_1d(positions.numpy())
        for part in parts.values():
            words = [_mixed_words(made, np.uint32(_pcg(word))).astype(np.int64) for word in (part, part ^ _GOLDEN)]
            made = ((words[1] & 0x7FFFFFFF) << 32) | words[0]
        return torch.from_numpy(made).reshape(positions.shape)
    for part in parts.values():
        low, high = (_mixed(positions, _pcg(counter)) for counter in (part, part ^ _GOLDEN))
        positions = ((high & 0x7FFFFFFF) << 32) | low
    return positions


def fold_in(keys: Tensor, branch: int) -> Tensor:
    """Independent keys for one part of a composed draw: int64 (B,) -> int64 (B,)."""
    return key(branch, keys, Stream.BRANCH)


fork = fold_in  # its former name, in generators that people wrote


def draw(keys: Tensor, count: int, offset: int = 0) -> Tensor:
    """`count` words of 32 random bits per key: int64 (B,) -> int64 (B, count) in 0..2^32-1.

    `offset` is the counter of the first word, so that one key can serve several draws.
    """
    counters = torch.arange(offset, offset + count, device=keys.device)
    return hash32(keys[:, None], counters)


def uniform(keys: Tensor, count: int, offset: int = 0) -> Tensor:
    """`count` numbers in [0, 1) per key: int64 (B,) -> float32 (B, count), multiples of 2^-24."""
    return (draw(keys, count, offset) >> 8).float() * 2.0**-24


def integers(words: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Map 32-bit words to integers in [low, high), exactly alike on every device.

    The bias of the multiply-and-shift is under (high - low) / 2^32; high - low must stay under 2^31.
    """
    return low + ((words * (high - low)) >> 32)


def normal(keys: Tensor, shape: tuple[int, ...], offset: int = 0) -> Tensor:
    """Standard normal noise per key, by Box and Muller (1958).

    Args:
        keys: int64 (B,).
        shape: shape of one sample's noise.
        offset: counter of the first word.

    Returns:
        float32 (B, *shape), computed in float64, so that devices agree to the last float32 bit but for
        values that lie within 1e-15 of a rounding border.
    """
    count = math.prod(shape)
    half = (count + 1) // 2
    words = draw(keys, 2 * half, offset).double()
    radius = torch.sqrt(-2 * torch.log((words[:, :half] + 1) * 2.0**-32))
    angle = words[:, half:] * (2 * math.pi * 2.0**-32)
    noise = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return noise[:, :count].float().reshape(-1, *shape)
