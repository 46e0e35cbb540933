"""Pixels: checked as callers give them to the encoder, and brought from bytes to numbers and back.

The one place where bytes become numbers, and the one where numbers become bytes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_RANGE_SLACK = 1e-4  # resizing rounds a little past 0 and 1
_TO_TENSOR = "torchvision.transforms.functional.pil_to_tensor makes one of a PIL image, torch.from_numpy of an array"


def checked_pixels(pixels: Any, ratio: int) -> Tensor:
    """Pixels for a VAE of `ratio` pixels per latent cell and side, without their alpha: (B, 3, H, W).

    Raises:
        ValueError: no tensor, another shape, dtype or range, NaN, no image, or one smaller than a latent cell.
    """
    _check_tensor("pixels", pixels, "(B, 3 or 4, H, W)")
    if pixels.ndim != 4 or pixels.shape[1] not in (3, 4):
        raise ValueError(f"pixels must be (B, 3 or 4, H, W), got {tuple(pixels.shape)}")
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise ValueError(f"pixels must be uint8, or float in 0..1; got {pixels.dtype}")
    if not len(pixels):
        raise ValueError(f"pixels must hold at least one image, got an empty batch {tuple(pixels.shape)}")
    if min(pixels.shape[-2:]) < ratio:
        raise ValueError(
            f"pixels of {pixels.shape[-2]} x {pixels.shape[-1]} are smaller than one latent cell of this VAE, "
            f"{ratio} x {ratio}"
        )
    if pixels.is_floating_point():
        _check_range("pixels", pixels, "float pixels in -1..1 or 0..255 must be brought to 0..1 first")
    return pixels[:, :3]


def checked_mask(mask: Any) -> Tensor:
    """A mask as (B, 1, H, W), without gradients, since it becomes 0 or 1 anyway.

    Raises:
        ValueError: no tensor, another shape, dtype or range, NaN, or no mask.
    """
    _check_tensor("mask", mask, "(H, W), (B, H, W) or (B, 1, H, W)")
    mask = mask.detach()
    if mask.ndim == 2:
        mask = mask[None, None]
    elif mask.ndim == 3:
        mask = mask[:, None]
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.is_complex():
        raise ValueError(f"mask must be (H, W), (B, H, W) or (B, 1, H, W), got {tuple(mask.shape)} {mask.dtype}")
    if 0 in mask.shape:
        raise ValueError(f"mask must hold at least one mask of at least one pixel, got {tuple(mask.shape)}")
    if mask.dtype != torch.bool:
        _check_range("mask", mask, "a mask in 0..255 must be divided by 255 first")
    return mask


def to_unit_float(pixels: Tensor) -> Tensor:
    """uint8, or float in 0..1, to float32 in 0..1."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float()


def to_bytes(pixels: Tensor) -> Tensor:
    """Float in 0..1, any dtype, to the nearest uint8; what lies outside is clipped. uint8 stays."""
    return pixels if pixels.dtype == torch.uint8 else (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def _check_tensor(name: str, x: Any, shape: str) -> None:
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor {shape}, got {type(x).__name__}; {_TO_TENSOR}")
    if x.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got a {x.layout} tensor; its to_dense() makes it so")
    if x.is_meta:
        raise ValueError(f"{name} must hold values, got a tensor on the meta device, which holds none")


def _check_range(name: str, x: Tensor, hint: str) -> None:
    if torch.compiler.is_compiling():
        return
    low, high = (v.item() for v in x.detach().aminmax())
    if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):  # a NaN fails both
        raise ValueError(f"{name} must lie in 0..1 without NaN, got {low:.4g}..{high:.4g}; {hint}")
