"""How an image and its mask come to the VAE's sizes: as in ComfyUI's node, or as in diffusers' inpaint pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class _Images(Protocol):
    def __call__(self, images: Tensor, ratio: int) -> Tensor: ...


class _Masks(Protocol):
    def __call__(self, mask: Tensor, size: Sequence[int], ratio: int) -> Tensor: ...


class Sizing(NamedTuple):
    """One way.

    Attributes:
        images: pixels (..., H, W) in 0..1 and the VAE's ratio to pixels (..., H', W'), sides multiples of the ratio.
        masks: a mask (B, 1, h, w) in 0..1, the image's (H, W) and the ratio to the hole, bool (B, 1, H', W').
    """

    images: _Images
    masks: _Masks


def centre_crop(images: Tensor, ratio: int) -> Tensor:
    """To multiples of `ratio`, centred; an odd pixel is lost at the bottom and right."""
    (height, width), (rows, columns) = images.shape[-2:], _multiples(images.shape[-2:], ratio)
    top, left = (height - rows) // 2, (width - columns) // 2
    return images[..., top : top + rows, left : left + columns]


def _cropped_hole(mask: Tensor, size: Sequence[int], ratio: int) -> Tensor:
    """Bilinear to the image's size, round half to even (which in 0..1 is: over 0.5), and cropped with the image."""
    if mask.shape[-2:] != torch.Size(size):
        mask = F.interpolate(mask.float(), size=tuple(size), mode="bilinear")
    return centre_crop(mask if mask.dtype == torch.bool else mask > 0.5, ratio)


def lanczos(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images (..., H, W) in 0..1, any dtype, to float32 (..., *size): by Pillow's Lanczos, in bytes, on the CPU.

    Images of that size already are as they are.
    """
    if images.shape[-2:] == torch.Size(size):
        return images.float()
    import numpy as np
    from PIL import Image

    planes = (images.detach().float() * 255).round().to(torch.uint8).flatten(0, -3).cpu().numpy()
    target, filtered = (size[1], size[0]), Image.Resampling.LANCZOS
    resized = np.stack([np.asarray(Image.fromarray(plane).resize(target, filtered)) for plane in planes])
    return torch.from_numpy(resized).to(images.device).unflatten(0, images.shape[:-2]).float().div_(255)


def _resized_images(images: Tensor, ratio: int) -> Tensor:
    return lanczos(images, _multiples(images.shape[-2:], ratio))


def _resized_hole(mask: Tensor, size: Sequence[int], ratio: int) -> Tensor:
    """Straight to the image's new size; one half and over is the hole."""
    return lanczos(mask, _multiples(size, ratio)) >= 0.5


def _multiples(size: Sequence[int], ratio: int) -> tuple[int, int]:
    return size[0] // ratio * ratio, size[1] // ratio * ratio


SIZINGS = {"comfyui": Sizing(centre_crop, _cropped_hole), "diffusers": Sizing(_resized_images, _resized_hole)}
