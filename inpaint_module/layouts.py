"""How each base model wants its conditioning: one class per layout, from the encoder's result to the model's input."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from inpaint_module.encoder import InpaintLatents
from inpaint_module.morphology import REDUCTIONS, reduce_mask


class Layout(ABC):
    """From noisy latents and the encoder's result to what a denoiser eats.

    Args:
        reduce: how the mask comes to the latent grid, a key of `inpaint_module.morphology.REDUCTIONS`.

    Raises:
        ValueError: an unknown reduction.
    """

    def __init__(self, reduce: str = "max"):
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce must be one of {', '.join(REDUCTIONS)}; got {reduce!r}")
        self.reduce = reduce

    @abstractmethod
    def __call__(self, noisy: Tensor, latents: InpaintLatents) -> Tensor:
        """Assemble the denoiser's input from noisy latents (B, C, h, w) and the encoder's result."""

    @abstractmethod
    def in_channels(self, channels: int) -> int:
        """Input channels of a denoiser over latents of C = `channels`."""

    def cells(self, latents: InpaintLatents) -> Tensor:
        """The noise mask on the latent grid: (B, 1, h, w), the batch that of the latents."""
        mask, samples = latents.noise_mask, latents.samples
        cells = reduce_mask(mask, mask.shape[-1] // samples.shape[-1], self.reduce)
        return cells.expand(len(samples), -1, -1, -1)


class StableDiffusionLayout(Layout):
    """Stable Diffusion 1.5, 2 and XL inpainting: noisy, mask (1 = inpaint), masked image; 2 C + 1 channels.

    Matches `StableDiffusionInpaintPipeline` of diffusers with reduce="nearest", a hole filled with 0.5 and
    `normalize=True` in the encoder.
    """

    def __call__(self, noisy: Tensor, latents: InpaintLatents) -> Tensor:
        """(B, C, h, w) and the encoder's result to (B, 2 C + 1, h, w)."""
        return torch.cat([noisy, self.cells(latents).to(noisy), latents.samples.to(noisy)], dim=1)

    def in_channels(self, channels: int) -> int:
        """2 C + 1."""
        return 2 * channels + 1
