"""Inputs for every family of VAEs, and its diffusers class called by hand, as its own pipelines call it."""

from __future__ import annotations

import pytest
import tiny_vaes
import torch
from tiny_vaes import FAMILIES
from torch import Tensor, nn

VIDEO = {"qwen", "wan21", "wan22"}
families = pytest.mark.parametrize("name", FAMILIES)


def pixels(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Random float32 (B, 3, H, W) in 0..1."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def image_of(name: str, batch: int = 1) -> Tensor:
    """A small image that is no square: 2 x 3 latent cells."""
    return pixels(batch, 2 * FAMILIES[name].ratio, 3 * FAMILIES[name].ratio)


def latents_of(name: str, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, FAMILIES[name].channels, 2, 3, generator=generator)


def assert_same(a: Tensor, b: Tensor) -> None:
    """Equal but for the order of float32 sums, which the memory format changes."""
    torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


def patchify(z: Tensor) -> Tensor:
    """As Flux2Pipeline._patchify_latents."""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)


def unpatchify(z: Tensor) -> Tensor:
    """As Flux2Pipeline._unpatchify_latents."""
    b, c, h, w = z.shape
    return z.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, h * 2, w * 2)


VIDEO_CLASSES = tuple({type(tiny_vaes.build(name)) for name in VIDEO})


def encode_by_hand(module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and std in the class's own words, one image per call."""
    means, stds = [], []
    for image in (images * 2 - 1).split(1):
        out = module.encode(image.unsqueeze(2) if isinstance(module, VIDEO_CLASSES) else image)
        parts = (out.latent_dist.mean, out.latent_dist.std) if "latent_dist" in out else (next(iter(out.values())),)
        parts = tuple(part.squeeze(2) if part.ndim == 5 else part for part in parts)
        parts = tuple(patchify(part) if hasattr(module, "bn") else part for part in parts)
        means.append(parts[0])
        stds += parts[1:]
    return torch.cat(means), torch.cat(stds) if stds else None
