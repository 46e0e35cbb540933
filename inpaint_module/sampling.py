"""Inpaint: from noise to latents of the filled image, with any diffusers scheduler."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from inpaint_module.encoder import InpaintLatents
from inpaint_module.layouts import Layout


class InpaintedImages(NamedTuple):
    """Photos on their way through inpainting; float32 (B, 3, H, W) in 0..1, but for the masks (B, 1, H, W).

    Attributes:
        image: the truth, cropped to the VAE's ratio.
        mask: bool, the hole.
        noise_mask: float, the grown mask.
        masked_image: the hole filled, what the VAE saw.
        inpainted: what the model made, all of it decoded.
        composite: `inpainted` inside the grown mask, the image's own pixels outside.
    """

    image: Tensor
    mask: Tensor
    noise_mask: Tensor
    masked_image: Tensor
    inpainted: Tensor
    composite: Tensor


@torch.no_grad()
def inpaint_latents(
    denoiser: nn.Module, scheduler: SchedulerMixin, layout: Layout, latents: InpaintLatents, noise: Tensor, steps: int
) -> Tensor:
    """Denoise the whole latent image, told the mask and the masked image at every step.

    Args:
        denoiser: diffusers model, called as denoiser(input, timestep).
        scheduler: diffusers scheduler; its state is not touched.
        layout: what the denoiser eats.
        latents: the encoder's result.
        noise: standard normal (B, C, h, w).
        steps: number of denoiser calls.

    Returns:
        (B, C, h, w), latents in the space of `latents.samples`.
    """
    scheduler = copy.deepcopy(scheduler)
    scheduler.set_timesteps(steps, device=noise.device)
    noisy = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(noisy, timestep)
        prediction = denoiser(layout(scaled, latents), timestep).sample
        noisy = scheduler.step(prediction, timestep, noisy).prev_sample
    return noisy


def composite(inpainted: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """The inpainted pixels inside the mask, the image's own, bit for bit, outside: (B, 3, H, W), mask (B, 1, H, W)."""
    return torch.where(mask > 0.5, inpainted, image)


def mean_colour_fill(image: Tensor, mask: Tensor) -> Tensor:
    """Each image's mean colour outside its mask, everywhere; grey if all is masked: (B, 3, H, W), mask (B, 1, H, W)."""
    known = (mask.float() <= 0.5).to(image)
    count = known.sum((2, 3), keepdim=True)
    mean = (image * known).sum((2, 3), keepdim=True) / count.clamp_min(1)
    return torch.where(count > 0, mean, 0.5).expand_as(image)
