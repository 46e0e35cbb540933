"""Inpaint one picture of any size: only what the mask hides changes, bit for bit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_module.base_models import TiledCall, latent_multiple
from inpaint_module.batch import Batch
from inpaint_module.pixels import to_bytes, to_unit_float

if TYPE_CHECKING:
    from inpaint_module.lightning_module import InpaintDiffusion


class Region(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    bottom: int
    right: int


def mask_region(mask: Tensor, margin: int) -> Region | None:
    """The bounding box of a mask bool (1, H, W) and `margin` pixels around it, inside the picture; None if empty."""
    rows, columns = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
    if not len(rows):
        return None
    height, width = mask.shape[-2:]
    top, left = max(0, int(rows[0]) - margin), max(0, int(columns[0]) - margin)
    return Region(top, left, min(height, int(rows[-1]) + 1 + margin), min(width, int(columns[-1]) + 1 + margin))


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Float (1, C, h, w) at another size (H, W), antialiased; as it is if it has that size."""
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)


def padded(image: Tensor, multiple: int) -> Tensor:
    """(1, C, H, W) with its last row and column repeated until both sides are multiples."""
    height, width = (-side % multiple for side in image.shape[-2:])
    return F.pad(image, (0, width, 0, height), mode="replicate")


def inpaint_image(
    module: InpaintDiffusion,
    image: Tensor,
    mask: Tensor,
    *,
    position: int = 0,
    caption: str = "",
    tile: int = 512,
    overlap: int = 128,
    margin: int | None = None,
    working_side: int | None = None,
    multiple: int = 64,
) -> Tensor:
    """Fill the hole of one picture.

    Only the mask's surroundings are worked on. Pixels outside the mask come back with the same bits.

    Args:
        module: the model, in eval mode.
        image: uint8 (3, H, W).
        mask: bool (1, H, W), true where to inpaint.
        position: the noise is a function of (the module's seed, position).
        caption: for models with text encoders.
        tile: pixels per side that the denoiser sees at once; larger surroundings are denoised in tiles.
        overlap: pixels that two tiles share at least.
        margin: pixels of context around the mask's bounding box; None for half a tile.
        working_side: bring the longer side of the surroundings down to this before inpainting, and the fill back up;
            None works at full resolution.
        multiple: the surroundings are padded to multiples of this many pixels, and of what the denoiser takes.

    Returns:
        uint8 (3, H, W) on the image's device.

    Raises:
        ValueError: another dtype or shape, a tile that is smaller than `multiple`, or a model that makes NaN.
    """
    multiple = math.lcm(multiple, module.encoder.vae.ratio * latent_multiple(module.denoiser, module.layout))
    _check(image, mask, tile, multiple)
    region = mask_region(mask, tile // 2 if margin is None else margin)
    if region is None:
        return image.clone()
    box = (..., slice(region.top, region.bottom), slice(region.left, region.right))
    pixels, hole = to_unit_float(image[box][None]), mask[box][None].float()
    full = (pixels.shape[-2], pixels.shape[-1])
    scale = 1.0 if working_side is None else min(1.0, working_side / max(full))
    size = (max(1, round(full[0] * scale)), max(1, round(full[1] * scale)))
    small, small_hole = resized(pixels, size), (resized(hole, size) > 0).float()
    filled = _fill(module, padded(small, multiple), padded(small_hole, multiple), position, caption, tile, overlap)
    filled = resized(filled[..., : size[0], : size[1]], full)
    result = image.clone()
    inside = mask[box].expand(3, -1, -1)
    result[box][inside] = to_bytes(filled[0])[inside]
    return result


def _fill(
    module: InpaintDiffusion, image: Tensor, mask: Tensor, position: int, caption: str, tile: int, overlap: int
) -> Tensor:
    """What the model makes of a picture float (1, 3, H, W) with a hole (1, 1, H, W): float (1, 3, H, W) in 0..1."""
    ratio = module.encoder.vae.ratio
    batch: Batch = {
        "image": to_bytes(image),
        "mask": mask > 0,
        "position": torch.tensor([position], device=image.device),
        "caption": [caption],
        "__key__": [str(position)],
    }
    filled = module.inpaint(batch, TiledCall(module.call, tile=tile // ratio, overlap=overlap // ratio)).inpainted
    if not filled.isfinite().all():  # as bytes NaN would be black, and nobody would know
        raise ValueError(
            f"the model makes NaN of picture {position}: expected finite pixels; a denoiser in float16, or the VAE "
            f"({module.encoder.vae.name}), overflows: load it in float32 or bfloat16"
        )
    return filled.clamp(0, 1)


def _check(image: Tensor, mask: Tensor, tile: int, multiple: int) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image: expected uint8 (3, H, W), got {image.dtype} {tuple(image.shape)}")
    if mask.dtype != torch.bool or mask.shape != (1, *image.shape[1:]):
        raise ValueError(f"mask: expected bool {(1, *image.shape[1:])}, got {mask.dtype} {tuple(mask.shape)}")
    if tile < multiple or tile % multiple:
        raise ValueError(f"tile: expected a multiple of {multiple} pixels, got {tile}")
