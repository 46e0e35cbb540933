"""How noisy a training sample is: densities over the noise time, and how flow matching shifts it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from inpaint_module.randomness import draw, normal


class TimestepSampler(ABC):
    """A density of the noise time: a pure function of each sample's key, whatever the batch."""

    @abstractmethod
    def __call__(self, keys: Tensor) -> Tensor:
        """Noise times of keys int64 (B,): float64 (B,) in 0..1, 0 the clean image and 1 nothing but noise."""


class Uniform(TimestepSampler):
    """All noise times alike, in [0, 1)."""

    def __call__(self, keys: Tensor) -> Tensor:
        """One word of 32 bits per key, over 2^32."""
        return draw(keys, 1)[:, 0].double() * 2.0**-32


class LogitNormal(TimestepSampler):
    """More of the middle: sigmoid(mean + std * standard normal); Esser et al. 2024, "Scaling rectified flow", eq. 19.

    A positive mean leans to noise, as in the paper. The SD3 script of diffusers counts from the other end: a mean
    there is its negative here.

    Args:
        mean: of the logit.
        std: of the logit.

    Raises:
        ValueError: a std that is not positive.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        if not std > 0:
            raise ValueError(f"LogitNormal std must be over 0, got {std}")
        self.mean, self.std = mean, std

    def __call__(self, keys: Tensor) -> Tensor:
        """The logistic function of a normal number."""
        return torch.sigmoid(self.mean + self.std * normal(keys, (1,))[:, 0].double())


class Mode(TimestepSampler):
    """Heavy tails: more of the middle for a positive scale, more of the ends for a negative; see `mode_time`.

    Args:
        scale: -1 .. 2 / (pi - 2) = 1.75; 0 is uniform, 1.29 the paper's best.

    Raises:
        ValueError: a scale at which the density is none.
    """

    def __init__(self, scale: float = 1.29):
        if not -1 <= scale <= 2 / (math.pi - 2):
            raise ValueError(f"Mode scale must be in -1..{2 / (math.pi - 2):.4f}, got {scale}")
        self.scale = scale

    def __call__(self, keys: Tensor) -> Tensor:
        """The inverse of the cumulative density at a uniform number."""
        return mode_time(Uniform()(keys), self.scale)


def mode_time(u: Tensor, scale: float) -> Tensor:
    """1 - u - scale (cos^2(pi u / 2) - 1 + u), which falls from 1 at u = 0 to 0 at u = 1; Esser et al. 2024, eq. 20."""
    return 1 - u - scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)


def shifted(times: Tensor, shift: float) -> Tensor:
    """Noise times moved to more noise for larger pictures: shift t / (1 + (shift - 1) t); Esser et al. 2024, eq. 23."""
    return shift * times / (1 + (shift - 1) * times)


def resolution_mu(config: Any, tokens: int) -> float:
    """The exponent of Flux's shift for a picture of this many tokens, on a line through the config's two ends.

    Args:
        config: of a flow matching scheduler: base_shift at base_image_seq_len tokens, max_shift at max_image_seq_len.
        tokens: 2 x 2 latents each.
    """
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (tokens - config.base_image_seq_len)
