"""Inpaint one picture of any size: only what the mask hides changes, bit for bit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inpaint_module.base_models import TiledCall, latent_multiple
from inpaint_module.batch import Batch
from inpaint_module.fills import seamless
from inpaint_module.morphology import mask_leak, mask_overcover, reduce_mask
from inpaint_module.pixels import to_bytes, to_unit_float
from inpaint_module.report.pages import fitted, masked_in_red, to_pil

if TYPE_CHECKING:
    from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

_ADDED: dict[str, Any] = {"reach": 0, "nothing_known": 0.5}  # how `seamless` makes the smooth fill itself
_JOINED = 512  # pixels a side; above it the join would cost more than the fill, and shows no more
_SHOWN = 384  # pixels of the longer side of the pictures that `look` makes


class Region(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    bottom: int
    right: int


class SeenByModel(NamedTuple):
    """The hole of a picture and its surroundings.

    Attributes:
        region: which part of the picture.
        pixels: float (1, 3, H, W) in 0..1, that part.
        hole: float (1, 1, H, W) of 0 and 1.
        image: float (1, 3, h, w), at the model's own scale, padded.
        mask: float (1, 1, h, w) of 0 and 1.
        size: (h, w) without the padding.
    """

    region: Region
    pixels: Tensor
    hole: Tensor
    image: Tensor
    mask: Tensor
    size: tuple[int, int]


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
    return F.interpolate(image, size, mode="bilinear", antialias=True)


def shrunk(pixels: Tensor, hole: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A picture float (1, 3, h, w) and its hole (1, 1, h, w), 1 = inpaint, at another size (H, W).

    A pixel is in the hole if anything of what it is made of was; the others have seen nothing of the hole.
    """
    if pixels.shape[-2:] == size:
        return pixels, hole
    known = resized(1 - hole, size)
    return resized(pixels * (1 - hole), size) / known.clamp_min(1e-3), (known < 1 - 1e-4).float()


def padded(image: Tensor, multiple: int) -> Tensor:
    """(1, C, H, W) with its last row and column repeated until both sides are multiples."""
    height, width = (-side % multiple for side in image.shape[-2:])
    return F.pad(image, (0, width, 0, height), mode="replicate")


def trained_side(module: InpaintDiffusion) -> int:
    """The side in pixels of the pictures that the denoiser was made for, as its config says; 1024 if it does not."""
    cells = getattr(module.denoiser, "config", {}).get("sample_size")
    cells = max(cells) if isinstance(cells, list | tuple) else cells
    return cells * module.encoder.vae.ratio if isinstance(cells, int) else 1024


def inpaint_image(
    module: InpaintDiffusion,
    image: Tensor,
    mask: Tensor,
    *,
    position: int = 0,
    caption: str = "",
    tile: int | None = None,
    overlap: int | None = None,
    margin: int | None = None,
    working_side: int | None = None,
    multiple: int = 64,
    blend: bool = True,
) -> Tensor:
    """Fill the hole of one picture, at the scale at which the model was trained.

    The hole's surroundings are brought down to the model's own side, filled in one piece, and brought back. Pixels
    outside the mask come back with the same bits.

    Args:
        module: the model, in eval mode.
        image: uint8 (3, H, W).
        mask: bool (1, H, W), true where to inpaint.
        position: the noise is a function of (the module's seed, position).
        caption: for models with text encoders.
        tile: pixels per side that the denoiser sees at once; larger surroundings are denoised in tiles. None for the
            model's own side, or 512 if that is less.
        overlap: pixels that two tiles share at least; None for a quarter of a tile.
        margin: pixels of context around the mask's bounding box; None for half the box, or what is missing to
            `working_side`.
        working_side: bring the longer side of the surroundings down to this before inpainting, and the fill back up;
            None for `trained_side`, 0 to work at full resolution.
        multiple: the surroundings are padded to multiples of this many pixels, and of what the denoiser takes.
        blend: move the fill so that it meets the known pixels at its border, see `seamless`.

    Returns:
        uint8 (3, H, W) on the image's device.

    Raises:
        ValueError: another dtype or shape, a tile that is smaller than `multiple`, or a model that makes NaN.
    """
    multiple = math.lcm(multiple, module.encoder.vae.ratio * latent_multiple(module.denoiser, module.layout))
    side = trained_side(module) if working_side is None else working_side or max(mask.shape)
    tile = max(512, math.ceil(trained_side(module) / multiple) * multiple) if tile is None else tile
    _check(image, mask, tile, multiple)
    seen = seen_by_model(module, image, mask, side, margin, multiple)
    if seen is None:
        return image.clone()
    pixels, hole, size = seen.pixels, seen.hole, seen.size
    given = seen.image, seen.mask
    filled = _fill(module, *given, position, caption, tile, tile // 4 if overlap is None else overlap)
    if blend and module.encoder.fill == "smooth":
        filled = filled - module.encoder.decode(module.encoder(*given).samples)  # the VAE's own error
    filled = filled[..., : size[0], : size[1]]
    if blend:
        filled = _blended(filled, pixels, hole, module.encoder.fill == "smooth")
    filled = resized(filled, (pixels.shape[-2], pixels.shape[-1]))
    result = image.clone()
    box = (..., slice(seen.region.top, seen.region.bottom), slice(seen.region.left, seen.region.right))
    inside = mask[box].expand(3, -1, -1)
    result[box][inside] = to_bytes(filled[0])[inside]
    return result


def seen_by_model(
    module: InpaintDiffusion, image: Tensor, mask: Tensor, side: int, margin: int | None = None, multiple: int = 64
) -> SeenByModel | None:
    """The part of a picture uint8 (3, H, W) that a model is given; None for an empty mask. See `inpaint_image`."""
    region = surroundings(mask, side, margin)
    if region is None:
        return None
    multiple = math.lcm(multiple, module.encoder.vae.ratio * latent_multiple(module.denoiser, module.layout))
    box = (..., slice(region.top, region.bottom), slice(region.left, region.right))
    pixels, hole = to_unit_float(image[box][None]), mask[box][None].float()
    size = _within(pixels, side)
    small, small_hole = shrunk(pixels, hole, size)
    if module.layout.reference == "image":  # the model sees what is in the hole
        small = resized(pixels, size)
    small, small_hole = (padded(each, multiple) for each in (small, small_hole))
    return SeenByModel(region, pixels, hole, small, small_hole, size)


def surroundings(mask: Tensor, side: int, margin: int | None = None) -> Region | None:
    """What of the picture is worked on: the hole's bounding box and its context; None for an empty mask.

    Args:
        mask: bool (1, H, W).
        side: pixels that the surroundings may have at the model's own scale.
        margin: pixels around the box; None for half its longer side, or what is missing to `side`.
    """
    box = mask_region(mask, 0)
    if box is None or margin is not None:
        return mask_region(mask, margin or 0)
    longer = max(box.bottom - box.top, box.right - box.left)
    return mask_region(mask, max(longer // 2, (side - longer) // 2))


def _within(pixels: Tensor, side: int) -> tuple[int, int]:
    """The size (H, W) of a picture whose longer side is brought down to `side`."""
    scale = min(1.0, side / max(pixels.shape[-2:]))
    return max(1, round(pixels.shape[-2] * scale)), max(1, round(pixels.shape[-1] * scale))


def _blended(filled: Tensor, pixels: Tensor, hole: Tensor, adds: bool) -> Tensor:
    """The fill (1, 3, h, w) of a picture (1, 3, H, W), joined to it at no more than 512 pixels a side.

    With `adds` it is what is added to the smooth fill.
    """
    size = _within(pixels, max(_JOINED, *filled.shape[-2:]))
    return seamless(resized(filled, size), *shrunk(pixels, hole, size), **(_ADDED if adds else {}))


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


class Looked(NamedTuple):
    """What the page shows of one fill; the last three at the scale at which the model works.

    Attributes:
        fill: the picture with its hole filled.
        grown: the grown mask in red.
        masked: the masked image.
        cells: the mask on the latent grid, white = inpaint.
        notes: sizes and the leak, in words.
    """

    fill: Image.Image
    grown: Image.Image
    masked: Image.Image
    cells: Image.Image
    notes: str


@torch.no_grad()
def look(
    module: InpaintDiffusion, picture: Image.Image, mask: Tensor, side: int, *, seed: int = 0, caption: str = ""
) -> Looked:
    """Fill the hole of an RGB picture under a mask bool (1, H, W), and show what the model was given.

    Args as of `inpaint_image`: `side` is its `working_side`, `seed` its `position`.

    Raises:
        ValueError: nothing is masked.
    """
    image = torch.from_numpy(np.array(picture.convert("RGB"))).movedim(-1, 0).to(module.device)
    mask = mask.to(module.device)
    seen = seen_by_model(module, image, mask, side)
    if seen is None:
        raise ValueError("mask: expected a painted hole, got an empty one: paint with the brush over what is to go")
    fill = inpaint_image(module, image, mask, position=seed, caption=caption, working_side=side)
    _, masked, grown = module.encoder.fill_hole(to_bytes(seen.image), seen.mask > 0)
    ratio, reduce = module.encoder.vae.ratio, module.layout.reduce
    known = reduce != "space-to-depth"
    cells = reduce_mask(grown, ratio, reduce) if known else grown
    height, width = seen.region.bottom - seen.region.top, seen.region.right - seen.region.left
    notes = (
        f"{mask.float().mean().item():.1%} of the picture is masked. The model saw {width} x {height} of its "
        f"{picture.width} x {picture.height} pixels, as {seen.size[1]} x {seen.size[0]}"
    )
    if (times := max(height, width) / max(seen.size)) >= 2:
        notes += f": the fill is enlarged {times:.1f} times, so it is soft"
    lost = ". The model gets every pixel of the mask."
    if known:
        leak, over = (share(grown, cells).item() for share in (mask_leak, mask_overcover))
        lost = f". On the grid of {ratio} x {ratio} pixels **{leak:.1%}** of the grown mask leak; {over:.1%} are added."
    unpadded = (..., slice(seen.size[0]), slice(seen.size[1]))
    red = masked_in_red(to_pil(seen.image[0][unpadded]), grown[0, 0][unpadded])
    grid = cells.repeat_interleave(grown.shape[-1] // cells.shape[-1], -1).repeat_interleave(
        grown.shape[-2] // cells.shape[-2], -2
    )
    masked_photo, cells_photo = to_pil(masked[0][unpadded]), to_pil(grid[0][unpadded].expand(3, -1, -1))
    red, masked_photo, cells_photo = (fitted(each, _SHOWN) for each in (red, masked_photo, cells_photo))
    return Looked(to_pil(fill), red, masked_photo, cells_photo, notes + lost)
