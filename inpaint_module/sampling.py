"""Inpaint: from noise to latents of the filled image, with any diffusers scheduler."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from inpaint_module.base_models import DenoiserCall, DenoiserLayout, denoiser_layout
from inpaint_module.encoder import InpaintLatents
from inpaint_module.objectives.objectives import is_flow_matching
from inpaint_module.objectives.timesteps import resolution_mu


class InpaintedImages(NamedTuple):
    """Photos on their way through inpainting; float32 (B, 3, H, W) in 0..1, but for the masks (B, 1, H, W).

    Attributes:
        image: the truth, cropped to the VAE's ratio: the photo, or of a pair its target.
        mask: bool, the hole.
        noise_mask: float, the grown mask.
        masked_image: the hole filled, what the VAE saw.
        inpainted: what the model made, all of it decoded.
        composite: `inpainted` inside the grown mask, the photo's own pixels outside.
    """

    image: Tensor
    mask: Tensor
    noise_mask: Tensor
    masked_image: Tensor
    inpainted: Tensor
    composite: Tensor


@torch.no_grad()
def inpaint_latents(
    denoiser: nn.Module,
    scheduler: SchedulerMixin,
    layout: DenoiserLayout,
    latents: InpaintLatents,
    noise: Tensor,
    steps: int,
    *,
    call: DenoiserCall | None = None,
    conditions: Mapping[str, Any] | None = None,
    unconditional: Mapping[str, Any] | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Denoise the whole latent image; the denoiser is fed the mask and the masked image at every step.

    Args:
        denoiser: diffusers model.
        scheduler: diffusers scheduler; its state is not touched.
        layout: the denoiser's input.
        latents: the encoder's result.
        noise: standard normal (B, C, h, w).
        steps: number of denoiser calls, or of pairs of calls with guidance.
        call: how the denoiser is called; None for denoiser(input, timestep).
        conditions: what a `Conditioning` gave for the batch; None for nothing.
        unconditional: what it gave with every caption dropped; needed with a guidance scale other than 1.
        guidance_scale: 1 for the conditional prediction alone; else unconditional + scale * (conditional -
            unconditional), Ho and Salimans 2022, "Classifier-free diffusion guidance".

    Returns:
        float32 (B, C, h, w), latents in the space of `latents.samples`.

    Raises:
        ValueError: a guidance scale other than 1 without `unconditional`, no target for a layout that blends, or a
            layout that is a condition of a ControlNet.
    """
    if guidance_scale != 1 and unconditional is None:
        raise ValueError(f"guidance_scale must be 1 without unconditional conditions, got {guidance_scale}")
    layout = denoiser_layout(layout)
    if layout.blends and layout.known(latents) is None:
        raise ValueError(f"latents.target: expected the whole images' latents for {type(layout).__name__}, got None")
    size = (noise.shape[-2], noise.shape[-1])
    call = call or DenoiserCall()
    scheduler = scheduled(scheduler, steps, size, noise.device, call)
    noisy = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for number, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(noisy, timestep) if hasattr(scheduler, "scale_model_input") else noisy
        inputs, timesteps = layout(scaled, latents), timestep.expand(len(noisy))
        prediction = call(denoiser, inputs, timesteps, conditions or {}, size).float()
        if guidance_scale != 1 and unconditional is not None:
            free = call(denoiser, inputs, timesteps, unconditional, size).float()
            prediction = call.guided(prediction, free, guidance_scale)
        noisy = scheduler.step(prediction, timestep, noisy).prev_sample
        if layout.blends:
            noisy = _blended(scheduler, layout, noisy, latents, noise, number + 1)
    return noisy


def _blended(
    scheduler: Any, layout: DenoiserLayout, noisy: Tensor, latents: InpaintLatents, noise: Tensor, step: int
) -> Tensor:
    """The known latents put back, with the noise of step number `step`, or none after the last.

    As in the loops of diffusers' inpaint pipelines for plain models, such as `StableDiffusionInpaintPipeline`.
    """
    known, cells = layout.known(latents), layout.cells(latents).to(noisy)
    assert known is not None
    if step < len(scheduler.timesteps):
        time = scheduler.timesteps[step : step + 1]
        flows = is_flow_matching(scheduler)
        known = scheduler.scale_noise(known, time, noise) if flows else scheduler.add_noise(known, noise, time)
    return (1 - cells) * known + cells * noisy


def scheduled(
    scheduler: SchedulerMixin, steps: int, size: tuple[int, int], device: torch.device, call: DenoiserCall
) -> SchedulerMixin:
    """A copy of a scheduler, ready for this many steps over latents of h x w = `size`, as its pipelines make it ready.

    Where the call asks for `even_steps`, as `FluxFillPipeline`, it is given equal steps of noise, which it shifts.

    Raises:
        ValueError: a single step with a scheduler that stretches its steps to a last one, as Qwen-Image's.
    """
    if scheduler.config.get("shift_terminal") and steps < 2:
        raise ValueError(f"sampling_steps: expected at least 2 with a scheduler of shift_terminal, got {steps}")
    scheduler = copy.deepcopy(scheduler)
    more: dict[str, Any] = {}
    if scheduler.config.get("use_dynamic_shifting"):
        own = call.shift(size, steps)
        more["mu"] = resolution_mu(scheduler.config, size[0] * size[1] // 4) if own is None else own
    if call.even_steps and is_flow_matching(scheduler):
        more["sigmas"] = torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()
        scheduler.set_timesteps(device=device, **more)
    else:
        scheduler.set_timesteps(steps, device=device, **more)
    return scheduler


def composite(inpainted: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """The inpainted pixels inside the mask, the image's own, bit for bit, outside: (B, 3, H, W), mask (B, 1, H, W)."""
    return torch.where(mask > 0.5, inpainted, image)
