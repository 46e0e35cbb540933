"""Two small images with holes, and noise, for layouts and for the pipelines they are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

HEIGHT, WIDTH = 32, 48


def images() -> Tensor:
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def holes() -> Tensor:
    """Two masks, of which nearest, max and space-to-depth each make something else."""
    mask = torch.zeros(2, 1, HEIGHT, WIDTH)
    mask[0, :, 5:19, 11:30] = mask[1, :, 0:9, 20:48] = mask[1, :, 26:28, 3:5] = 1
    return mask


def noise(channels: int) -> Tensor:
    return torch.randn(2, channels, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(2))
