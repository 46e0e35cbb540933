"""ComfyUI's VAE objects: images in NHWC, unscaled latents out, weights placed by ComfyUI itself."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from inpaint_module.vae.frozen_vae import FrozenVAE, Posterior, sha256_of_weights


class ComfyVAE(FrozenVAE):
    """An object of ComfyUI's duck type: `encode(pixels (B, H, W, 3) in 0..1)` returns unscaled latents, `decode` back.

    ComfyUI keeps the scaling of latents in the diffusion model, not in the VAE. Its video VAEs take a batch of images
    as the frames of one video; `posterior` gives them one image at a time, `encode` all.

    Args:
        vae: has `encode`, and `spacial_compression_encode()` (since 2026, spelt so) or `downscale_ratio`, an int or,
            for video, a tuple that ends with it.

    Raises:
        ValueError: one test encode contradicts the ratio.
    """

    def __init__(self, vae: Any):
        self.vae = vae
        spacial = getattr(vae, "spacial_compression_encode", None)
        ratio = spacial() if spacial else vae.downscale_ratio
        self.ratio = int(ratio[-1] if isinstance(ratio, tuple | list) else ratio)
        self.is_video = False
        self.channels = self._dry_encode(type(vae).__name__, torch.device("cpu"))
        grey = torch.full((1, 2 * self.ratio, 2 * self.ratio, 3), 0.5, device="cpu")
        self.is_video = vae.encode(grey).ndim == 5

    @property
    def name(self) -> str:
        """The class of the object, of the model inside it, and its dtype."""
        inside = getattr(self.vae, "first_stage_model", None)
        said = [] if inside is None else [type(inside).__name__]
        dtype = getattr(self.vae, "vae_dtype", None)
        said += [] if dtype is None else [str(dtype).removeprefix("torch.")]
        return type(self.vae).__name__ + (f" ({', '.join(said)})" if said else "")

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> Posterior:
        """See `FrozenVAE.posterior`; `std` is None, since ComfyUI gives the mode only."""
        latents = torch.cat([self.encode(part) for part in pixels.split(1 if self.is_video else len(pixels))])
        return Posterior(latents[:, :, 0] if latents.ndim == 5 else latents, None)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """See `FrozenVAE.encode`."""
        with torch.autocast(pixels.device.type, enabled=False):
            return self.vae.encode(pixels.movedim(1, -1)).to(pixels.device, torch.float32)

    def decode(self, latents: Tensor) -> Tensor:
        """See `FrozenVAE.decode`."""
        groups = latents.unsqueeze(2).split(1) if self.is_video else [latents]
        with torch.autocast(latents.device.type, enabled=False):
            images = torch.cat([self.vae.decode(group) for group in groups])
        images = images[:, 0] if images.ndim == 5 else images
        return images.to(latents.device, torch.float32).movedim(-1, 1)

    def normalize(self, latents: Tensor) -> Tensor:
        """Not known to ComfyUI's VAE objects.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "normalize needs a diffusers autoencoder: ComfyUI keeps the scaling of latents in the diffusion model"
        )

    denormalize = normalize

    def to(self, device: torch.device) -> None:
        """Nothing: ComfyUI moves its weights itself."""

    def fingerprint(self) -> bytes:
        """The sha256 of the weights that `get_sd()` gives; of a fixed image's latents where there is none.

        Latents, unlike weights, may round otherwise on another kind of device.
        """
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        state = self.vae.get_sd() if hasattr(self.vae, "get_sd") else {}
        if state:
            return sha256_of_weights(state)
        ramp = torch.linspace(0, 1, 4 * self.ratio, device="cpu")
        image = torch.stack([ramp.expand(len(ramp), -1), ramp[:, None].expand(-1, len(ramp)), ramp.flip(0).outer(ramp)])
        return hashlib.sha256(self.posterior(image[None]).mean.cpu().contiguous().numpy().tobytes()).digest()
