"""How a denoiser is called, whole or in tiles, and which sizes it cannot compute with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inpaint_module.base_models.layout import DenoiserLayout


class ControlNetInputs(NamedTuple):
    """What a ControlNet is called with.

    Attributes:
        inputs: the denoiser's, see `DenoiserCall`; the noisy latents, which come first, are what it takes.
        timesteps: likewise.
        conditions: of the denoiser.
        condition: of the ControlNet, beside them.
        scale: what its residuals are multiplied by.
        size: latent rows and columns (h, w).
    """

    inputs: Tensor
    timesteps: Tensor
    conditions: Mapping[str, Any]
    condition: Tensor
    scale: float
    size: tuple[int, int]


class DenoiserCall:
    """Call a U-Net of diffusers: `denoiser(inputs, timesteps, **conditions).sample`.

    A base model that is called otherwise has a subclass that overrides `__call__`. Inputs and floating-point
    conditions are brought to the denoiser's dtype; timesteps stay as the scheduler counts them.

    Attributes:
        even_steps: whether its pipelines give the scheduler equal steps of noise, 1 to 1 / steps, instead of leaving
            them to it.
    """

    even_steps = False

    def shift(self, size: tuple[int, int], steps: int) -> float | None:
        """The exponent of the scheduler's dynamic shift, for latents of h x w = `size`; None if its config says it."""
        return None

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """What the denoiser says of a batch, on the latent grid.

        Args:
            denoiser: a diffusers model.
            inputs: what the layout made: (B, channels, h, w), or packed tokens (B, tokens, channels).
            timesteps: (B,) as the scheduler counts them, 0..num_train_timesteps: int64 for diffusion, float32
                (sigma * num_train_timesteps) for flow matching.
            conditions: what the conditioning gave; nested mappings are allowed.
            size: latent rows and columns (h, w), to unpack tokens and to place them.

        Returns:
            (B, C, h, w).
        """
        more = matched(conditions, denoiser.dtype)
        return denoiser(inputs.to(denoiser.dtype), timesteps, **more).sample

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance as its pipelines do it, Ho and Salimans 2022: (B, C, h, w).

        Args:
            conditional: what the denoiser says with its captions.
            unconditional: without.
            scale: 1 for `conditional` alone.
        """
        return torch.lerp(unconditional, conditional, scale)

    def residuals(self, controlnet: Any, given: ControlNetInputs) -> dict[str, Any]:
        """What a ControlNet tells the denoiser, as further conditions of it.

        Args:
            controlnet: a diffusers ControlNet of this base model.
            given: what it is called with.
        """
        more = matched({**given.conditions, "controlnet_cond": given.condition}, controlnet.dtype)
        noisy = given.inputs[:, : controlnet.config.in_channels].to(controlnet.dtype)
        said = controlnet(noisy, given.timesteps, conditioning_scale=given.scale, **more)
        down, mid = said.down_block_res_samples, said.mid_block_res_sample
        return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid}


def matched(conditions: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Conditions whose floating-point tensors have this dtype, through nested mappings and lists."""
    return {name: _matched(value, dtype) for name, value in conditions.items()}


def _matched(value: Any, dtype: Any) -> Any:
    if isinstance(value, Mapping):
        return matched(value, dtype)
    if isinstance(value, list | tuple):
        return type(value)(_matched(each, dtype) for each in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def latent_multiple(denoiser: nn.Module, layout: DenoiserLayout) -> int:
    """What the rows and columns of the latents must be multiples of: patches, or the coarsest grid of a U-Net.

    A `UNet2DConditionModel` takes any size: it tells its upsamplers theirs.
    """
    from diffusers import UNet2DModel

    config = getattr(denoiser, "config", {})
    patch = config.get("patch_size") or 1
    needed = math.lcm(*patch[-2:]) if isinstance(patch, Sequence) else patch  # of a video, the first is of frames
    if isinstance(denoiser, UNet2DModel):
        needed = 2 ** (len(config["block_out_channels"]) - 1)
    return math.lcm(needed, layout.multiple)


def check_image_sizes(
    denoiser: nn.Module, layout: DenoiserLayout, ratio: int, sizes: Mapping[str, Sequence[tuple[int, int]]]
) -> None:
    """Refuse images that the encoder takes, cropped to `ratio`, but the denoiser does not.

    Args:
        denoiser: a diffusers model.
        layout: its input.
        ratio: pixels per latent and side.
        sizes: (H, W) pixels, by the argument that they come from.

    Raises:
        ValueError: naming the argument, and what the sides must be: multiples, or as small as learned positions reach.
    """
    multiple, largest = latent_multiple(denoiser, layout), _largest_grid(denoiser)
    models = f"{type(denoiser).__name__} with {type(layout).__name__}"
    for argument, shapes in sizes.items():
        for shape in shapes:
            rows, columns = (side // ratio for side in shape)
            if not (rows and columns) or rows % multiple or columns % multiple:
                raise ValueError(
                    f"{argument}: expected images whose sides are multiples of {ratio * multiple} pixels, got "
                    f"{shape[0]} x {shape[1]}: {models} takes latents with rows and columns in multiples of "
                    f"{multiple}, and these would be {rows} x {columns}, of {ratio} pixels each; take multiples of "
                    f"{ratio * multiple}"
                )
            if largest is not None and max(rows, columns) > largest:
                raise ValueError(
                    f"{argument}: expected images of at most {ratio * largest} pixels a side, got {shape[0]} x "
                    f"{shape[1]}: {models} has learned positions for {largest} x {largest} latents "
                    f"(pos_embed_max_size), and these would be {rows} x {columns}; take smaller images"
                )


def _largest_grid(denoiser: nn.Module) -> int | None:
    """Latent rows and columns that the learned positions of a transformer such as SD3's reach; None for any."""
    config = getattr(denoiser, "config", {})
    patches = config.get("pos_embed_max_size")
    return None if patches is None else patches * (config.get("patch_size") or 1)


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles start that cover 0..length, each overlapping the next by at least `overlap`, evenly spread."""
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]


def tile_weight(height: int, width: int) -> Tensor:
    """How much each cell of a tile counts: a pyramid, 1 in the middle, above 0 at the border; float32 (h, w)."""
    ramps = [1 - ((torch.arange(n) + 0.5) / n * 2 - 1).abs() for n in (height, width)]
    return ramps[0][:, None] * ramps[1]


class TiledCall(DenoiserCall):
    """Calls the denoiser on tiles of the latent grid and averages what it says of each cell.

    All tiles are denoised together, step by step, so that they agree: Bar-Tal et al. 2023, "MultiDiffusion: fusing
    diffusion paths for controlled image generation". A picture of one tile or less is one call.

    Args:
        call: how the denoiser is called.
        tile: side of a tile in latent cells.
        overlap: cells that two tiles share at least.

    Raises:
        ValueError: an overlap that is not 0 to half a tile.
    """

    def __init__(self, call: DenoiserCall, *, tile: int, overlap: int) -> None:
        if not 0 <= overlap <= tile // 2:
            raise ValueError(f"tile overlap: expected 0 to {tile // 2}, half a tile, got {overlap}")
        self.call, self.tile, self.overlap, self.even_steps = call, tile, overlap, call.even_steps

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """See `DenoiserCall.guided`."""
        return self.call.guided(conditional, unconditional, scale)

    def shift(self, size: tuple[int, int], steps: int) -> float | None:
        """See `DenoiserCall.shift`."""
        return self.call.shift(size, steps)

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See the class; (B, C, h, w).

        Raises:
            ValueError: tokens instead of a latent grid.
        """
        if max(size) <= self.tile:
            return self.call(denoiser, inputs, timesteps, conditions, size)
        if inputs.ndim != 4:
            raise ValueError(
                f"tiles: expected inputs (B, channels, h, w), got {tuple(inputs.shape)}: a denoiser of tokens, such as "
                f"Flux, takes a picture whole; use a tile of at least {max(size)} latent cells"
            )
        parts, weights = [], torch.zeros(size, device=inputs.device)
        starts = [tile_starts(side, self.tile, self.overlap) for side in size]
        for top, left in product(*starts):
            box = (..., slice(top, top + self.tile), slice(left, left + self.tile))
            part = inputs[box]
            here = _cut(conditions, box, size)
            said = self.call(denoiser, part, timesteps, here, (part.shape[-2], part.shape[-1])).float()
            weight = tile_weight(*said.shape[-2:]).to(said.device)
            weights[box] += weight
            parts.append((box, said * weight))
        total = parts[0][1].new_zeros(*parts[0][1].shape[:2], *size)
        for box, said in parts:
            total[box] += said
        return total / weights


def _cut(conditions: Mapping[str, Any], box: tuple[Any, ...], size: tuple[int, int]) -> Mapping[str, Any]:
    """Conditions of one tile: of a ControlNet's condition, in pixels or latents, what lies in the box."""
    whole = conditions.get("controlnet_cond")
    if whole is None:
        return conditions
    ratio = whole.shape[-2] // size[0]
    sides = [slice(side.start * ratio, side.stop * ratio) for side in box[1:]]
    return {**conditions, "controlnet_cond": whole[..., sides[0], sides[1]]}
