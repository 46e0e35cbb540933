"""How a denoiser is called: the one place that knows its argument names, time scale and output shape, and what it
refuses: the condition of a ControlNet, and sizes that it cannot compute with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from inpaint_module.layouts import ControlNetCondition, DenoiserLayout, Layout


class DenoiserCall:
    """Call a U-Net of diffusers: `denoiser(inputs, timesteps, **conditions).sample`.

    A base model that is called otherwise has a subclass that overrides `__call__`. Inputs and floating-point
    conditions are brought to the denoiser's dtype; timesteps stay as the scheduler counts them.
    """

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
        told = matched(conditions, denoiser.dtype)
        return denoiser(inputs.to(denoiser.dtype), timesteps, **told).sample


def matched(conditions: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Conditions whose floating-point tensors have this dtype, through nested mappings."""
    return {name: _matched(value, dtype) for name, value in conditions.items()}


def _matched(value: Any, dtype: Any) -> Any:
    if isinstance(value, Mapping):
        return matched(value, dtype)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def denoiser_layout(layout: Layout) -> DenoiserLayout:
    """The layout, if it is one that feeds a denoiser.

    Raises:
        ValueError: it is another, such as the condition of a ControlNet.
    """
    if isinstance(layout, DenoiserLayout):
        return layout
    reason = ""
    if isinstance(layout, ControlNetCondition):
        reason = ", the condition of a ControlNet: a denoiser that is fed with it never sees the noisy latents"
    raise ValueError(
        "layout: expected a DenoiserLayout, such as StableDiffusionLayout (1.x, 2.x and XL), StableDiffusion3Layout or "
        f"FluxFillLayout, got {type(layout).__name__}{reason}"
    )


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
        layout: what it eats.
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
