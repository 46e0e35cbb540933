"""What text tells each base model: captions to the embeddings that its diffusers pipeline makes of a prompt."""

from __future__ import annotations

import copy
import hashlib
import warnings
from abc import abstractmethod
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_module.batch import Batch
from inpaint_module.conditioning.conditioning import Conditioning
from inpaint_module.conditioning.text_encoder import FrozenTextEncoder, checked_clip_skip
from inpaint_module.layouts import DenoiserLayout, FluxFillLayout, StableDiffusion3Layout, StableDiffusionLayout

_OLD_CACHE = (
    "data.train_shards: expected cached latents with the original_size and crop of each image, got some of an older "
    "version, without: Stable Diffusion XL is told that each is a whole photo of its own size; make the cache again "
    "with inpaint shards cache-latents to tell it what was cut"
)


class TextConditioning(Conditioning):
    """Captions, read by one or more frozen text encoders.

    Attributes:
        encoders: in the order in which the pipeline counts them; None for one that is left out.
        pipeline: the diffusers class that serves the trained model.
        layout: what that pipeline feeds its denoiser.
        clip_skip: layers that CLIPs leave out at the end, as the pipeline's argument of that name; None if not given.
    """

    encoders: tuple[FrozenTextEncoder | None, ...]
    pipeline: str
    layout: type[DenoiserLayout]
    clip_skip: int | None = None

    @abstractmethod
    def read(self, captions: list[str]) -> dict[str, Tensor]:
        """The embeddings of B captions, B rows each."""

    def nothing(self) -> dict[str, Tensor]:
        """What stands for a dropped caption, one row each: an empty one, which skips no layer, as in the pipelines."""
        plain = copy.copy(self)
        plain.clip_skip = None
        return plain.read([""])

    def arrange(self, told: dict[str, Tensor], batch: Batch) -> dict[str, Any]:
        """Embeddings to keyword arguments of the denoiser."""
        return dict(told)

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
        told = self.read(captions)
        if dropped is not None:
            told = {name: _either(dropped, self._nothing[name].to(value), value) for name, value in told.items()}
        return self.arrange(told, batch)

    def to(self, device: torch.device) -> None:
        """See `Conditioning.to`."""
        for encoder in self._present:
            encoder.to(device)

    def fingerprint(self) -> bytes:
        """See `Conditioning.fingerprint`."""
        return hashlib.sha256(b"".join(encoder.digest for encoder in self._present)).digest()

    def components(self) -> dict[str, Any]:
        """Tokenizers, text encoders and options by the names that the pipeline gives them."""
        found: dict[str, Any] = {}
        for number, encoder in enumerate(self.encoders, start=1):
            end = "" if number == 1 else f"_{number}"
            found[f"tokenizer{end}"] = encoder and encoder.tokenizer
            found[f"text_encoder{end}"] = encoder and encoder.model
        return found

    @property
    def _present(self) -> list[FrozenTextEncoder]:
        return [encoder for encoder in self.encoders if encoder is not None]

    @cached_property
    def _nothing(self) -> dict[str, Tensor]:
        return self.nothing()


class StableDiffusionText(TextConditioning):
    """Stable Diffusion 1.x and 2.x: the last hidden states (B, 77, D) of one CLIP, as `encoder_hidden_states`.

    Args:
        encoder: CLIPTextModel and its tokenizer.
        clip_skip: 1 reads the last layer but one, which some programs call 2, and ComfyUI -2.

    Raises:
        ValueError: fewer layers than `clip_skip`.
    """

    pipeline = "StableDiffusionInpaintPipeline"
    layout = StableDiffusionLayout

    def __init__(self, encoder: FrozenTextEncoder, *, clip_skip: int | None = None):
        self.encoders = (encoder,)
        self.encoder, self.clip_skip = encoder, checked_clip_skip(clip_skip, 0, encoder)

    def read(self, captions: list[str]) -> dict[str, Tensor]:
        """See `TextConditioning.read`."""
        found = self.encoder(captions)
        if self.clip_skip is None:
            return {"encoder_hidden_states": found[0]}
        return {"encoder_hidden_states": self.encoder.normalized(found.hidden_states[-(self.clip_skip + 1)])}

    def components(self) -> dict[str, Any]:
        """See `TextConditioning.components`; without the safety checker, which training does not know."""
        return {
            **super().components(),
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }


class StableDiffusionXLText(TextConditioning):
    """Stable Diffusion XL: penultimate hidden states of two CLIPs, the second one's pooled text, and the image's sizes.

    Time ids are the batch's `original_size`, `crop` and `target_size`, see `Batch`, as diffusers'
    `train_text_to_image_sdxl.py` has them; without them the image's own size and no crop, as in the pipeline (Podell
    et al. 2023, section 2.2).

    Args:
        encoder: CLIPTextModel and its tokenizer.
        encoder_2: CLIPTextModelWithProjection and its tokenizer.
        force_zeros: a dropped caption is zeros, as in the pipeline's guidance; False: an empty caption.
        ratio: pixels per latent cell and side; sizes are multiples of it.
        clip_skip: layers left out besides the last, which always is.

    Raises:
        ValueError: fewer layers than `clip_skip`.
    """

    pipeline = "StableDiffusionXLInpaintPipeline"
    layout = StableDiffusionLayout

    def __init__(
        self,
        encoder: FrozenTextEncoder,
        encoder_2: FrozenTextEncoder,
        *,
        force_zeros: bool = True,
        ratio: int = 8,
        clip_skip: int | None = None,
    ):
        self.encoders = (encoder, encoder_2)
        self.clip_skip = checked_clip_skip(clip_skip, 1, encoder, encoder_2)
        self.encoder, self.encoder_2 = encoder, encoder_2
        self.force_zeros, self.ratio = force_zeros, ratio

    def read(self, captions: list[str]) -> dict[str, Tensor]:
        """See `TextConditioning.read`."""
        first, second = self.encoder(captions), self.encoder_2(captions)
        layers = [found.hidden_states[-2 - (self.clip_skip or 0)] for found in (first, second)]
        hidden = torch.cat([layers[0], layers[1].to(layers[0])], dim=-1)
        return {"encoder_hidden_states": hidden.to(self.encoder_2.dtype), "text_embeds": second.text_embeds}

    def nothing(self) -> dict[str, Tensor]:
        """See `TextConditioning.nothing`."""
        empty = super().nothing()
        return {name: torch.zeros_like(value) for name, value in empty.items()} if self.force_zeros else empty

    def components(self) -> dict[str, Any]:
        """See `TextConditioning.components`."""
        return {**super().components(), "force_zeros_for_empty_prompt": self.force_zeros}

    def arrange(self, told: dict[str, Tensor], batch: Batch) -> dict[str, Any]:
        """See `TextConditioning.arrange`."""
        added = {"text_embeds": told["text_embeds"], "time_ids": self.time_ids(batch).float()}
        return {"encoder_hidden_states": told["encoder_hidden_states"], "added_cond_kwargs": added}

    def time_ids(self, batch: Batch) -> Tensor:
        """Original rows and columns, crop's top and left, target's rows and columns: int64 (B, 6).

        The last are multiples of `ratio`, as the encoder makes them; what it cuts off, as much on all sides, counts as
        crop.

        Raises:
            ValueError: sizes or crops that are not (B, 2).
        """
        image = batch["image"]
        if "latents" in batch and "original_size" not in batch:
            warnings.warn(_OLD_CACHE, stacklevel=2)
        # one by one: a list would be copied to a GPU, which waits
        whole = torch.stack([torch.full((len(image),), side, device=image.device) for side in image.shape[-2:]], 1)
        kept = whole // self.ratio * self.ratio
        original, crop = batch.get("original_size", kept), batch.get("crop", torch.zeros_like(kept))
        target = batch.get("target_size", kept)
        for name, value in (("original_size", original), ("crop", crop), ("target_size", target)):
            if tuple(value.shape) != (len(image), 2):
                raise ValueError(f"batch[{name!r}] must be ({len(image)}, 2), got {tuple(value.shape)}")
        inner = target.to(whole) // self.ratio * self.ratio
        return torch.cat([original.to(whole), crop.to(whole) + (target.to(whole) - inner) // 2, inner], dim=1)


class StableDiffusion3Text(TextConditioning):
    """Stable Diffusion 3: penultimate hidden states and pooled text of two CLIPs, then the tokens of a T5.

    Args:
        encoder: CLIPTextModelWithProjection and its tokenizer.
        encoder_2: another.
        encoder_3: T5EncoderModel and its tokenizer, 256 tokens in the pipeline; None leaves it out, which the base
            model was trained to bear: its tokens are zeros then, as in the pipeline.
        width: features of a T5 token, the transformer's `joint_attention_dim`.
        length: tokens that stand for a T5 that is left out.
        clip_skip: layers of the CLIPs left out besides the last, which always is.

    Raises:
        ValueError: fewer layers than `clip_skip`.
    """

    pipeline = "StableDiffusion3InpaintPipeline"
    layout = StableDiffusion3Layout

    def __init__(
        self,
        encoder: FrozenTextEncoder,
        encoder_2: FrozenTextEncoder,
        encoder_3: FrozenTextEncoder | None = None,
        *,
        width: int = 4096,
        length: int = 256,
        clip_skip: int | None = None,
    ):
        self.encoders = (encoder, encoder_2, encoder_3)
        self.encoder, self.encoder_2, self.encoder_3 = encoder, encoder_2, encoder_3
        # the pipeline cuts captions for both to what the first one's tokenizer takes
        encoder_2.length = encoder.length
        self.width, self.length = width, length
        self.clip_skip = checked_clip_skip(clip_skip, 1, encoder, encoder_2)

    def read(self, captions: list[str]) -> dict[str, Tensor]:
        """See `TextConditioning.read`."""
        clips = [self.encoder(captions), self.encoder_2(captions)]
        hidden = torch.cat([clip.hidden_states[-2 - (self.clip_skip or 0)] for clip in clips], dim=-1)
        if self.encoder_3 is None:
            tokens = hidden.new_zeros(len(captions), self.length, self.width)
        else:
            tokens = self.encoder_3(captions)[0]
        hidden = F.pad(hidden, (0, tokens.shape[-1] - hidden.shape[-1]))
        pooled = torch.cat([clip.text_embeds for clip in clips], dim=-1)
        return {"encoder_hidden_states": torch.cat([hidden, tokens.to(hidden)], dim=1), "pooled_projections": pooled}


class FluxText(TextConditioning):
    """Flux.1: the tokens of a T5, the pooled text of a CLIP, and the guidance that a distilled model is told.

    Args:
        encoder: CLIPTextModel and its tokenizer.
        encoder_2: T5EncoderModel and its tokenizer, 512 tokens in the pipeline.
        guidance: told to a transformer with `guidance_embeds`; 30 is what `FluxFillPipeline` says. None for one
            without.
    """

    pipeline = "FluxFillPipeline"
    layout = FluxFillLayout

    def __init__(self, encoder: FrozenTextEncoder, encoder_2: FrozenTextEncoder, *, guidance: float | None = 30.0):
        self.encoders = (encoder, encoder_2)
        self.encoder, self.encoder_2, self.guidance = encoder, encoder_2, guidance

    def read(self, captions: list[str]) -> dict[str, Tensor]:
        """See `TextConditioning.read`."""
        return {
            "encoder_hidden_states": self.encoder_2(captions)[0],
            "pooled_projections": self.encoder(captions).pooler_output,
        }

    def arrange(self, told: dict[str, Tensor], batch: Batch) -> dict[str, Any]:
        """See `TextConditioning.arrange`."""
        tokens = told["encoder_hidden_states"]
        found: dict[str, Any] = {**told, "txt_ids": tokens.new_zeros(tokens.shape[1], 3)}
        if self.guidance is not None:
            found["guidance"] = tokens.new_full((len(tokens),), self.guidance, dtype=torch.float32)
        return found


def _either(dropped: Tensor, nothing: Tensor, value: Tensor) -> Tensor:
    return torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), nothing, value)
