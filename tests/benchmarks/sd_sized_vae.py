"""An autoencoder that costs what Stable Diffusion's costs."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn

SD_CHANNELS = (128, 256, 512, 512)


def sd_sized_vae(
    channels: tuple[int, ...] = SD_CHANNELS, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> AutoencoderKL:
    """AutoencoderKL with Stable Diffusion's sizes and random weights, frozen; `InpaintEncoder` lays them out.

    Args:
        channels: of its four levels.
        device: where it goes.
        dtype: of its weights.
    """
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    return nn.Module.to(vae.eval().requires_grad_(False), device, dtype)  # diffusers' own `to` warns of every cast
