"""How the transformers of Stable Diffusion 3 and Flux are called, each as its diffusers pipeline does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inpaint_module.denoisers.denoiser_call import DenoiserCall, matched
from inpaint_module.layouts import unpack


class StableDiffusion3Call(DenoiserCall):
    """Call SD3Transformer2DModel, which takes its timesteps by name."""

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See `DenoiserCall`."""
        told = matched(conditions, denoiser.dtype)
        return denoiser(hidden_states=inputs.to(denoiser.dtype), timestep=timesteps, **told).sample


class FluxCall(DenoiserCall):
    """Call FluxTransformer2DModel: time in 0..1, the place of every token, packed tokens in and out."""

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See `DenoiserCall`."""
        told = matched({**conditions, "img_ids": token_places(*size, inputs.device)}, denoiser.dtype)
        # the pipeline, too, rounds the time to the model's precision before the division
        time = timesteps.to(denoiser.dtype).expand(len(inputs)) / 1000
        tokens = denoiser(hidden_states=inputs.to(denoiser.dtype), timestep=time, **told).sample
        return unpack(tokens, *size)


def token_places(height: int, width: int, device: torch.device) -> Tensor:
    """For latents of h = `height`, w = `width`: (h/2 * w/2, 3) of 0, row and column of each 2 x 2 token."""
    rows, columns = torch.arange(height // 2, device=device), torch.arange(width // 2, device=device)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1).float()
