"""A denoiser's conditions besides the picture: frozen text encoders and their like, behind one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from inpaint_module.batch import Batch
from inpaint_module.randomness import Stream, key, uniform


class Conditioning(ABC):
    """From a batch to the further keyword arguments of a denoiser, computed in the step and never trained.

    It is no `nn.Module` on purpose, as `FrozenVAE` is none: held by a module, it stays out of that module's state
    dict, `.train()`, dtype casts, DDP, FSDP and EMA. Deepcopy shares it.

    Attributes:
        sees: whether captions are read beside `batch["reference"]`.
    """

    sees = False

    def __call__(self, batch: Batch, dropped: Tensor | None = None) -> dict[str, Any]:
        """Keyword arguments for the denoiser, without gradients and outside of autocast.

        Args:
            batch: on the denoiser's device.
            dropped: bool (B,) on that device; these samples get what the base model takes for "no caption", whatever
                their caption says. None drops none.
        """
        device = batch["image"].device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.embed(batch, dropped)

    @abstractmethod
    def embed(self, batch: Batch, dropped: Tensor | None) -> dict[str, Any]:
        """As `__call__`; every tensor has B rows or is the same for all samples.

        Choose between a caption and none by `torch.where` on embeddings, not on strings: reading `dropped` back would
        wait for the device.
        """

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move the weights; their dtype stays."""

    def offload(self) -> bool:
        """Keep the weights on the CPU between uses, from the next move on; whether any are kept there."""
        return False

    def offloaded_models(self) -> list[nn.Module]:
        """Those of `models` that are."""
        return []

    @abstractmethod
    def fingerprint(self) -> bytes:
        """The sha256 of all weights, 32 bytes, computed once; device and memory format do not change it."""

    def models(self) -> list[nn.Module]:
        """The frozen models whose weights it holds."""
        return []

    def __deepcopy__(self, memo: dict[int, Any]) -> Conditioning:
        return self


class NoConditioning(Conditioning):
    """For denoisers that take input and timestep alone."""

    def embed(self, batch: Batch, dropped: Tensor | None) -> dict[str, Any]:
        """Nothing."""
        return {}

    def to(self, device: torch.device) -> None:
        """Nothing to move."""

    def fingerprint(self) -> bytes:
        """The same for all."""
        return bytes(32)


def drop_mask(seed: int, positions: Tensor, probability: float) -> Tensor:
    """Which samples go without their caption: bool (B,), a function of (seed, position) alone.

    Ho and Salimans 2022, "Classifier-free diffusion guidance", algorithm 1; 0.1 is usual.
    """
    return uniform(key(seed, positions, Stream.CAPTION_DROP), 1)[:, 0] < probability


def check_captions(conditioning: Conditioning | None, caption_dropout: float, guidance_scale: float) -> None:
    """Refuse what cannot be done with captions.

    Raises:
        ValueError: a share outside 0..1, or captions dropped or guided where there are none.
    """
    if not 0 <= caption_dropout <= 1:
        raise ValueError(f"caption_dropout must be in 0..1, got {caption_dropout}")
    if (conditioning is None or isinstance(conditioning, NoConditioning)) and (caption_dropout or guidance_scale != 1):
        raise ValueError(
            f"caption_dropout {caption_dropout} and guidance_scale {guidance_scale} need a conditioning, got none; "
            "without text encoders they must be 0 and 1"
        )
