"""Pixels: checked as callers give them to the encoder, brought from bytes to numbers and back, and to the VAE's sizes.

The one place where bytes become numbers, and the one where numbers become bytes. The sizes are those of ComfyUI's
node, or of diffusers' inpaint pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_module.batch import Batch, rescaled_sizes

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

    planes = to_bytes(images.detach().float()).flatten(0, -3).cpu().numpy()
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


def resized_sizes(batch: Batch, ratio: int) -> Batch:
    """The batch with the sizes that its images have once `sizing: diffusers` has resized them to multiples."""
    size = (batch["image"].shape[-2], batch["image"].shape[-1])
    target, device = _multiples(size, ratio), batch["image"].device
    scale = torch.stack([torch.full((), new / old, device=device) for new, old in zip(target, size, strict=True)])
    return rescaled_sizes(batch, torch.zeros_like(scale), scale, target)


def padding_mask_crop(batch: Batch, padding: int) -> Batch:
    """Every image cut to the surroundings of its hole and enlarged to its old size; mask and target with it.

    As a diffusers pipeline called with `padding_mask_crop` does with PIL images before it encodes them: the box around
    the hole, `padding` pixels more on each side, widened to the image's proportions, by Lanczos in bytes; its own image
    processor does it, on the CPU, which waits for a GPU. An image without a hole stays whole.

    Args:
        batch: with its masks; `crop` and `target_size`, where it has them, go along.
        padding: pixels, 0 or more.

    Raises:
        ValueError: a negative padding, or cached latents, which are of the whole images.
    """
    if padding < 0:
        raise ValueError(f"padding_mask_crop: expected 0 or more pixels, got {padding}")
    if "latents" in batch:
        raise ValueError(
            "padding_mask_crop: expected images without cached latents, which are of whole images, got a batch with "
            "latents: train from the images themselves, or leave padding_mask_crop out"
        )
    names = [name for name in ("image", "target") if name in batch]
    images = torch.stack([batch[name].cpu() for name in names], 1)
    parts = [_around_hole(*sample, padding) for sample in zip(images, batch["mask"][:, 0].cpu(), strict=True)]
    device, size = batch["image"].device, (images.shape[-2], images.shape[-1])
    start, scale = (torch.stack([part[field] for part in parts]).to(device) for field in (2, 3))
    pictures = torch.stack([part.images for part in parts], 1).to(device)
    cut: Batch = {**batch, **dict(zip(names, pictures, strict=True))}
    cut["mask"] = torch.stack([part.mask for part in parts]).to(device)
    return rescaled_sizes(cut, start, scale, size)


class _Part(NamedTuple):
    images: Tensor
    mask: Tensor
    start: Tensor
    scale: Tensor


def _around_hole(images: Tensor, mask: Tensor, padding: int) -> _Part:
    """Of uint8 (N, 3, H, W) and bool (H, W)."""
    if not mask.any():
        return _Part(images, mask[None], torch.zeros(2), torch.ones(2))
    import numpy as np
    from diffusers.image_processor import VaeImageProcessor
    from PIL import Image

    height, width = mask.shape
    processor, hole = VaeImageProcessor(), Image.fromarray(mask.numpy().astype(np.uint8) * 255)
    box = processor.get_crop_region(hole, width, height, padding)
    pictures = [Image.fromarray(np.ascontiguousarray(image.movedim(0, -1).numpy())) for image in images]
    cut = [processor.resize(each.crop(box), height, width, "fill") for each in (*pictures, hole)]
    *pixels, grey = (torch.from_numpy(np.array(each)).movedim(-1, 0) for each in cut)
    left, top, right, bottom = box
    scale = torch.tensor([height / (bottom - top), width / (right - left)])
    return _Part(torch.stack(pixels), grey[:1] >= 128, torch.tensor([top, left]), scale)


SIZINGS = {"comfyui": Sizing(centre_crop, _cropped_hole), "diffusers": Sizing(_resized_images, _resized_hole)}
