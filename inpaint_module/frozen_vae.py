"""The interface of every autoencoder: pixels in 0..1 to unscaled latents and back, and latents to model space.

Autoencoders differ in what `encode` returns, the number of axes, the ratio and how latents are scaled. The subclasses,
`DiffusersVAE` and `ComfyVAE` for ComfyUI's own objects, know these differences; nothing else does.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
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
    free_dtype = False  # whether a run may choose in what it computes
    offloaded = False  # whether its weights are on the CPU between uses

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

    def compute_in(self, dtype: torch.dtype) -> bool:
        """Compute in another dtype from now on, if none was named when it was loaded; whether it does.

        The fingerprint stays: it says which weights these are, not in what they are computed.
        """
        return False

    def offload(self) -> bool:
        """Keep the weights on the CPU between uses, from the next move on; whether they are. ComfyUI moves its own."""
        self.offloaded = bool(self.models())
        return self.offloaded

    def offloaded_models(self) -> list[nn.Module]:
        """Those of `models` whose weights are on the CPU between uses."""
        return self.models() if self.offloaded else []

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
