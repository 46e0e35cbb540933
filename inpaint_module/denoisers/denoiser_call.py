"""How a denoiser is called: the one place that knows its argument names, time scale and output shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


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
