"""The interface of every autoencoder: pixels in 0..1 to unscaled latents and back, and latents to model space.

Autoencoders differ in what `encode` returns, the number of axes, the ratio and how latents are scaled. The subclasses,
`DiffusersVAE` and `ComfyVAE`, know these differences; nothing else does.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class VAEOverflowError(ValueError):
    """Latents that are infinite or NaN, because the VAE's dtype does not hold its numbers."""


class Posterior(NamedTuple):
    """The distribution of an image's latents: `mean` and `std`, float32 (B, C, h, w); `std` None if there is none."""

    mean: Tensor
    std: Tensor | None


class FrozenVAE(ABC):
    """An autoencoder that never trains: always in eval mode, without gradients, in its own dtype, shared by deepcopy.

    It is no `nn.Module` on purpose: held by a module, it stays out of that module's state dict, `.train()`, dtype
    casts, DDP, FSDP and EMA. Images are samples, never frames: the latents of one do not depend on its batch.

    Attributes:
        ratio: pixels per latent cell and side.
        channels: latent channels C.
    """

    ratio: int
    channels: int

    @property
    def name(self) -> str:
        """Its name in messages: class and dtype."""
        return type(self).__name__

    @abstractmethod
    def posterior(self, pixels: Tensor) -> Posterior:
        """Encode float32 (B, 3, H, W) in 0..1, sides multiples of `ratio`, to unscaled (B, C, H/ratio, W/ratio)."""

    def encode(self, pixels: Tensor) -> Tensor:
        """As ComfyUI's nodes call it: the posterior's mode, unscaled, float32 (B, C, h, w).

        A video VAE takes the images (B, 3, H, W) for the frames of one video: (1, C, T, h, w).
        """
        return self.posterior(pixels).mean

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode unscaled (B, C, h, w) to float32 (B, 3, h * ratio, w * ratio), about 0..1, not clamped.

        Gradients reach `latents`, for losses in pixel space; the weights have none.
        """

    @abstractmethod
    def normalize(self, latents: Tensor) -> Tensor:
        """Unscaled latents to the space in which the denoiser works, about zero mean and unit variance."""

    @abstractmethod
    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the weights; their dtype stays."""

    @abstractmethod
    def fingerprint(self) -> bytes:
        """The sha256 of the weights, 32 bytes, computed once; device and memory format do not change it."""

    def models(self) -> list[nn.Module]:
        """The frozen models whose weights it holds; none where somebody else keeps them, as ComfyUI does."""
        return []

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenVAE:
        return self

    def _dry_encode(self, name: str, device: torch.device) -> int:
        """Check `ratio` and the four axes of latents on one grey image of 2 x 2 cells, and return the channels C."""
        side = 2 * self.ratio
        if device.type == "meta":
            raise ValueError(f"{name} holds no weights, it is on the meta device: load it first")
        claim = f"{name} claims {self.ratio} pixels per latent cell and side"
        try:
            shape = self.posterior(torch.full((1, 3, side, side), 0.5, device=device)).mean.shape
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(f"{claim}, but cannot encode {side} x {side} pixels: {error}") from error
        if len(shape) != 4 or shape[2:] != (2, 2):
            raise ValueError(
                f"{claim}, but encodes {side} x {side} pixels to latents of shape {tuple(shape)}, not (1, C, 2, 2)"
            )
        return shape[1]


def sha256_of_weights(state: Mapping[str, Tensor]) -> bytes:
    """The sha256 over names, dtypes, shapes and values of a state dict, in the order of names."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.digest()
