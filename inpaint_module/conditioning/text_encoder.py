"""A tokenizer and the text model that reads it: frozen, as an autoencoder is here."""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from inpaint_module.vae.frozen_vae import sha256_of_weights


class FrozenTextEncoder:
    """A text model of transformers that never trains: in eval mode, without gradients, in its own dtype.

    It is no `nn.Module`, for the reasons of `FrozenVAE`. A caption that fills all tokens is said once: what goes
    beyond them is not read.

    Args:
        tokenizer: of transformers.
        model: CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel or alike; frozen in place.
        length: tokens a caption, padded or cut to it; None for the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, model: nn.Module, length: int | None = None):
        self.tokenizer, self.length = tokenizer, length or tokenizer.model_max_length
        self.model = cast(Any, model.eval().requires_grad_(False))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> Any:
        """The model's own output for B captions, hidden states of all layers included: of (B, length) tokens."""
        ids, mask = self._tokens(captions)
        if any(part.training for part in self.model.modules()):
            self.model.eval()
        # T5 and CLIP read their padding, in the pipelines too; only some Stable Diffusion 2 say otherwise
        told = {"attention_mask": mask} if getattr(self.model.config, "use_attention_mask", False) else {}
        return self.model(ids, output_hidden_states=True, **told)

    @torch.no_grad()
    def normalized(self, hidden: Tensor) -> Tensor:
        """Hidden states of any layer of a CLIP through its last norm, as those of the last layer."""
        return getattr(self.model, "text_model", self.model).final_layer_norm(hidden)

    def to(self, device: torch.device) -> None:
        """Move the weights; their dtype stays."""
        self.model.to(device)

    @cached_property
    def digest(self) -> bytes:
        """The sha256 of the weights, 32 bytes."""
        return sha256_of_weights(self.model.state_dict())

    def _tokens(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask, int64 (B, length)."""
        tokens = self.tokenizer(
            captions, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        full = tokens.attention_mask.all(dim=1)
        if full.any():
            longest = captions[int(full.int().argmax())]
            warnings.warn(
                f"a caption fills all {self.length} tokens of {type(self.model).__name__}, and what goes beyond is not "
                f"read: {longest[:80]!r}",
                stacklevel=2,
            )
        return self._sent(tokens.input_ids), self._sent(tokens.attention_mask)

    def _sent(self, x: Tensor) -> Tensor:
        """On the model's device; a GPU with work before this is not waited for."""
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x.to(self.device)


def checked_clip_skip(clip_skip: int | None, own: int, *encoders: FrozenTextEncoder) -> int | None:
    """How many layers the CLIPs leave out at the end, besides the `own` that the base model leaves out itself.

    Raises:
        ValueError: a negative number, or more than there are.
    """
    most = min(encoder.model.config.num_hidden_layers for encoder in encoders) - own
    if clip_skip is not None and not 0 <= clip_skip <= most:
        raise ValueError(f"clip_skip must be in 0..{most} for these text encoders, or null; got {clip_skip}")
    return clip_skip
