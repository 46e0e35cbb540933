"""What alimama-creative/FLUX-Controlnet-Inpainting does, written from the facts of its pipeline: the hole is black, the
mask is brought to the latent grid by nearest and told as 1 = keep after the latents, both packed 2 x 2; every step is a
call of ControlNet and transformer, and nothing is blended.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


def controlnet_of(folder: Path) -> nn.Module:
    """The ControlNet of a folder as their class has it: diffusers' own with a wider layer for the condition."""
    config = dict(diffusers.FluxControlNetModel.load_config(folder))
    extra = config.pop("extra_condition_channels")
    made: Any = diffusers.FluxControlNetModel.from_config(config)
    made.controlnet_x_embedder = nn.Linear(config["in_channels"] + extra, made.inner_dim)
    made.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"), strict=True)
    return made.eval()


class FluxControlNetInpaintingPipeline(diffusers.FluxPipeline):
    """Their pipeline without guidance by a negative prompt, which is how the beta model is called."""

    controlnet: Any

    @torch.no_grad()
    def __call__(self, prompt: list[str], control_image: Tensor, control_mask: Tensor, **call: Any) -> Any:  # type: ignore[override]
        height, width, steps, latents = call["height"], call["width"], call["num_inference_steps"], call["latents"]
        embeds, pooled, places = self.encode_prompt(prompt, prompt)
        masked = control_image.clone()
        masked[(control_mask > 0.5).repeat(1, 3, 1, 1)] = -1
        cells = self.vae.encode(masked).latent_dist.sample()
        cells = (cells - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        mask = 1 - F.interpolate(control_mask, size=(height // 8, width // 8))
        condition = self._pack_latents(torch.cat([cells, mask], 1), len(prompt), 17, height // 8, width // 8)
        ids = self._prepare_latent_image_ids(len(prompt), height // 16, width // 16, latents.device, latents.dtype)
        shifts = self.scheduler.config
        slope = (shifts.max_shift - shifts.base_shift) / (shifts.max_image_seq_len - shifts.base_image_seq_len)
        mu = latents.shape[1] * slope + shifts.base_shift - slope * shifts.base_image_seq_len
        self.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        for time in self.scheduler.timesteps:
            told = {
                "hidden_states": latents,
                "timestep": time.expand(len(latents)).to(latents.dtype) / 1000,
                "guidance": torch.tensor([call["guidance_scale"]]).expand(len(latents)),
                "pooled_projections": pooled,
                "encoder_hidden_states": embeds,
                "txt_ids": places,
                "img_ids": ids,
                "return_dict": False,
            }
            scale = call["controlnet_conditioning_scale"]
            double, single = self.controlnet(controlnet_cond=condition, conditioning_scale=scale, **told)
            said = self.transformer(controlnet_block_samples=double, controlnet_single_block_samples=single, **told)
            latents = self.scheduler.step(said[0], time, latents, return_dict=False)[0]
        return SimpleNamespace(images=latents)
