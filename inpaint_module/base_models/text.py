"""Frozen text encoders, and the interface from captions to a base model's conditions."""

from __future__ import annotations

import copy
import hashlib
import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from inpaint_module.base_models.conditioning import Conditioning
from inpaint_module.base_models.quantize import is_quantized
from inpaint_module.base_models.text_cache import TextCache, sent
from inpaint_module.batch import Batch
from inpaint_module.frozen_vae import sha256_of_weights
from inpaint_module.weights import brought_to, frozen, kept_on_cpu


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
        self.offloaded: torch.device | None = None  # where it computes, if its weights are on the CPU between uses

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.offloaded or next(self.model.parameters()).device

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> Any:
        """The model's own output for B captions, hidden states of all layers included: of (B, length) tokens."""
        ids, mask = self._tokens(captions)
        if any(part.training for part in self.model.modules()):
            self.model.eval()
        # T5 and CLIP read their padding, in the pipelines too; only some Stable Diffusion 2 say otherwise
        more = {"attention_mask": mask} if getattr(self.model.config, "use_attention_mask", False) else {}
        with brought_to(self.model, ids.device):
            return self.model(ids, output_hidden_states=True, **more)

    @torch.no_grad()
    def normalized(self, hidden: Tensor) -> Tensor:
        """Hidden states of any layer of a CLIP through its last norm, as those of the last layer."""
        norm = getattr(self.model, "text_model", self.model).final_layer_norm
        with brought_to(norm, hidden.device):
            return norm(hidden)

    def to(self, device: torch.device) -> None:
        """Move the weights, or only where it computes; their dtype stays."""
        if self.offloaded is not None:
            self.offloaded = device
            kept_on_cpu(frozen(self.model), device)
        else:
            self.model.to(device)

    @cached_property
    def digest(self) -> bytes:
        """The sha256 of the weights, 32 bytes."""
        return sha256_of_weights(self.model.state_dict())

    def _tokens(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and attention mask, int64 (B, length)."""
        tokens = self.tokenizer(captions, padding="max_length", max_length=self.length, truncation=True)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        full = [caption for caption, read in zip(captions, mask, strict=True) if all(read)]
        if full:
            longest = full[0]
            warnings.warn(
                f"a caption fills all {self.length} tokens of {type(self.model).__name__}, and what goes beyond is not "
                f"read: {longest[:80]!r}",
                stacklevel=2,
            )
        return sent(torch.tensor(ids), self.device), sent(torch.tensor(mask), self.device)


def checked_clip_skip(clip_skip: int | None, own: int, *encoders: FrozenTextEncoder) -> int | None:
    """How many layers the CLIPs leave out at the end, besides the `own` that the base model leaves out itself.

    Raises:
        ValueError: a negative number, or more than there are.
    """
    most = min(encoder.model.config.num_hidden_layers for encoder in encoders) - own
    if clip_skip is not None and not 0 <= clip_skip <= most:
        raise ValueError(f"clip_skip must be in 0..{most} for these text encoders, or null; got {clip_skip}")
    return clip_skip


class TextConditioning(Conditioning):
    """Captions, read by one or more frozen text encoders.

    Attributes:
        encoders: in the order in which the pipeline counts them; None for one that is left out.
        clip_skip: layers that CLIPs leave out at the end, as the pipeline's argument of that name; None if not given.
        cache: what the encoders made of all captions; they have no weights themselves then. None: they read captions.
        load: makes the same with encoders that have their weights, for an export; of one with a cache.
    """

    encoders: tuple[FrozenTextEncoder | None, ...]
    clip_skip: int | None = None
    cache: TextCache | None = None
    load: Callable[[], TextConditioning]

    @abstractmethod
    def read(self, captions: list[str]) -> dict[str, Any]:
        """The embeddings of B captions, B rows each."""

    def beside(self, captions: list[str], batch: Batch) -> dict[str, Any]:
        """As `read`, of the captions of a batch, for encoders that are shown more of it."""
        return self.read(captions)

    def nothing(self) -> dict[str, Tensor]:
        """What stands for a dropped caption, one row each: an empty one, which skips no layer, as in the pipelines."""
        plain = copy.copy(self)
        plain.clip_skip = None
        return plain.read([""])

    def arrange(self, embeddings: dict[str, Tensor], batch: Batch) -> dict[str, Any]:
        """Embeddings to keyword arguments of the denoiser."""
        return dict(embeddings)

    def embed(self, batch: Batch, dropped: Tensor | None) -> dict[str, Any]:
        """See `Conditioning.embed`.

        Raises:
            ValueError: no caption for each image.
        """
        captions = batch.get("caption")
        if not isinstance(captions, list) or len(captions) != len(batch["image"]):
            raise ValueError(
                f"{type(self).__name__} expects batch['caption'], a list of {len(batch['image'])} strings, got "
                f"{captions if captions is None else f'{len(captions)} in a {type(captions).__name__}'}"
            )
        embeddings = self.cache.read(captions, batch["image"].device) if self.cache else self.beside(captions, batch)
        if dropped is not None:
            # moved once: a cache's comes from the CPU
            self._nothing = {name: self._nothing[name].to(value) for name, value in embeddings.items()}
            embeddings = {name: _either(dropped, self._nothing[name], value) for name, value in embeddings.items()}
        return self.arrange(embeddings, batch)

    def to(self, device: torch.device) -> None:
        """See `Conditioning.to`."""
        for encoder in self._present if self.cache is None else ():
            encoder.to(device)

    def offload(self) -> bool:
        """See `Conditioning.offload`; an encoder in 4 or 8 bits stays where it computes."""
        away = [each for each in self._present if self.cache is None and not is_quantized(each.model)]
        for encoder in away:
            encoder.offloaded = encoder.device
        return bool(away)

    def offloaded_models(self) -> list[nn.Module]:
        """See `Conditioning.offloaded_models`."""
        return [encoder.model for encoder in self._present if encoder.offloaded is not None]

    def fingerprint(self) -> bytes:
        """See `Conditioning.fingerprint`."""
        if self.cache is not None:
            return self.cache.fingerprint
        return hashlib.sha256(b"".join(encoder.digest for encoder in self._present)).digest()

    def models(self) -> list[nn.Module]:
        """See `Conditioning.models`."""
        return [encoder.model for encoder in self._present] if self.cache is None else []

    def components(self) -> dict[str, Any]:
        """Tokenizers, text encoders and options by the names that the pipeline gives them."""
        found: dict[str, Any] = {}
        for number, encoder in enumerate(self.encoders if self.cache is None else self._loaded.encoders, start=1):
            end = "" if number == 1 else f"_{number}"
            found[f"tokenizer{end}"] = encoder and encoder.tokenizer
            found[f"text_encoder{end}"] = encoder and encoder.model
        return found

    @property
    def _present(self) -> list[FrozenTextEncoder]:
        return [encoder for encoder in self.encoders if encoder is not None]

    @cached_property
    def _nothing(self) -> dict[str, Tensor]:
        return self.nothing() if self.cache is None else self.cache.nothing()

    @cached_property
    def _loaded(self) -> TextConditioning:
        return self.load()


def check_cacheable(text: TextConditioning) -> None:
    """Refuse encoders of whose captions a `TextCache` cannot hold rows of one shape.

    Raises:
        ValueError: captions become as many tokens as they have.
    """
    if isinstance(text, PipelineText):
        raise ValueError(
            f"base.text.cache: expected Stable Diffusion, XL, 3 or Flux, as the captions of {type(text).__name__} have "
            "not all the same number of tokens"
        )


class PipelineText(TextConditioning):
    """Captions as a pipeline of diffusers reads them itself, by its `encode_prompt`.

    For base models whose captions become as many tokens as they have. Which captions are dropped is read back from the
    device.

    Args:
        encoder: its one text encoder, and the tokenizer; `length` is the pipeline's `max_sequence_length`.
        more: further parts of the pipeline, by its names.
    """

    pipeline: str
    arguments: Mapping[str, Any] = {}

    def __init__(self, encoder: FrozenTextEncoder, **more: Any):
        import diffusers

        self.encoders = (encoder,)
        self.encoder = encoder
        kind: Any = getattr(diffusers, self.pipeline)
        self.more, parts = more, {"tokenizer": encoder.tokenizer, "text_encoder": encoder.model, **more}
        names = [name for name in inspect.signature(kind).parameters if name not in parts]
        self.reader: Any = kind(**parts, **dict.fromkeys(names))

    @abstractmethod
    def named(self, read: Any) -> dict[str, Any]:
        """What `encode_prompt` gave, as keyword arguments of the denoiser."""

    def read(self, captions: list[str], **pictures: Any) -> dict[str, Any]:
        """See `TextConditioning.read`; `pictures` go to `encode_prompt` too."""
        arguments = {
            "device": self.encoder.device,
            "max_sequence_length": self.encoder.length,
            **self.arguments,
            **pictures,
        }
        self.encoder.model.eval()
        with brought_to(self.encoder.model, self.encoder.device):
            return self.named(self.reader.encode_prompt(prompt=list(captions), **arguments))

    def components(self) -> dict[str, Any]:
        """See `TextConditioning.components`."""
        return {**super().components(), **self.more}

    def embed(self, batch: Batch, dropped: Tensor | None) -> dict[str, Any]:
        """See `Conditioning.embed`; a dropped caption is an empty one."""
        if dropped is not None and isinstance(batch.get("caption"), list):
            pairs = zip(batch["caption"], dropped.tolist(), strict=True)
            batch = {**batch, "caption": ["" if gone else caption for caption, gone in pairs]}
        return super().embed(batch, None)


def _either(dropped: Tensor, nothing: Tensor, value: Tensor) -> Tensor:
    return torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), nothing, value)
