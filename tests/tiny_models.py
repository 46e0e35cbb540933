"""Real diffusers models at tiny size, with fixed random weights, and batches to feed them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel
from torch import Tensor

from inpaint_module import InpaintEncoder
from inpaint_module.base_models import Conditioning, ModelParts, StableDiffusionLayout
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion


def tiny_vae(seed: int = 0, **config: Any) -> AutoencoderKL:
    """AutoencoderKL, ratio 8, 4 channels; the golden fixtures' architecture."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        **config,
    )


def tiny_denoiser(seed: int = 0, in_channels: int = 9, out_channels: int = 4, **config: Any) -> UNet2DModel:
    """UNet2DModel over 4-channel latents."""
    torch.manual_seed(seed)
    small = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    return UNet2DModel(in_channels=in_channels, out_channels=out_channels, **small | config)


class ClassConditioning(Conditioning):
    """Tells the denoiser a class: 1 for every photo, 0 for none."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def embed(self, batch: Mapping[str, Any], dropped: Tensor | None) -> dict[str, Any]:
        told = torch.ones(len(batch["image"]), dtype=torch.int64, device=self.device)
        return {"class_labels": told if dropped is None else told.where(~dropped, 0)}

    def to(self, device: torch.device) -> None:
        self.device = device

    def fingerprint(self) -> bytes:
        return bytes(range(32))


def tiny_module(**options: Any) -> InpaintDiffusion:
    """An InpaintDiffusion that is ready to train."""
    parts = ModelParts(
        options.pop("denoiser", None) or tiny_denoiser(),
        InpaintEncoder(tiny_vae(), normalize=True),
        StableDiffusionLayout("max"),
        options.pop("scheduler", None) or DDIMScheduler(prediction_type="v_prediction"),
        conditioning=options.pop("conditioning", None),
        call=options.pop("call", None),
    )
    return InpaintDiffusion(parts, **{"sampling_steps": 2} | options)


def tiny_batch(batch: int = 2, height: int = 32, width: int = 48, first: int = 0) -> dict[str, Any]:
    """Random bytes, a box as the hole, positions from `first`."""
    generator = torch.Generator().manual_seed(first)
    mask = torch.zeros(batch, 1, height, width, dtype=torch.bool)
    mask[..., 8:20, 10:30] = True
    return {
        "image": torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator),
        "mask": mask,
        "position": torch.arange(first, first + batch),
        "caption": [""] * batch,
        "__key__": [f"photo{number}" for number in range(first, first + batch)],
    }
