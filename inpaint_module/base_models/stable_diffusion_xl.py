"""Stable Diffusion XL."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from inpaint_module.base_models.denoiser_call import DenoiserCall
from inpaint_module.base_models.family import Family, TextFolder, TextOptions, Way
from inpaint_module.base_models.layout import PlainLayout
from inpaint_module.base_models.stable_diffusion import UNET_CONTROLNET, StableDiffusionLayout
from inpaint_module.base_models.text import FrozenTextEncoder, TextConditioning, checked_clip_skip
from inpaint_module.batch import Batch

_OLD_CACHE = (
    "data.train_shards: expected cached latents with the original_size and crop of each image, got some of an older "
    "version, without: Stable Diffusion XL takes it that each is a whole photo of its own size; make the cache again "
    "with inpaint shards cache-latents to tell it what was cut"
)


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

    def arrange(self, embeddings: dict[str, Tensor], batch: Batch) -> dict[str, Any]:
        """See `TextConditioning.arrange`."""
        added = {"text_embeds": embeddings["text_embeds"], "time_ids": self.time_ids(batch).float()}
        return {"encoder_hidden_states": embeddings["encoder_hidden_states"], "added_cond_kwargs": added}

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


def _text(folder: TextFolder, options: TextOptions) -> StableDiffusionXLText:
    force_zeros = folder.index.get("force_zeros_for_empty_prompt", True)
    return StableDiffusionXLText(
        folder.encoder(1), folder.encoder(2), force_zeros=force_zeros, clip_skip=options.clip_skip
    )


STABLE_DIFFUSION_XL = Family(
    name="Stable Diffusion XL",
    pipelines=("StableDiffusionXL",),
    text=StableDiffusionXLText,
    read_text=_text,
    call=DenoiserCall(),
    ways={
        "channels": Way(StableDiffusionLayout, "StableDiffusionXLInpaintPipeline"),
        "plain": Way(PlainLayout, "StableDiffusionXLInpaintPipeline"),
        "controlnet": Way(
            PlainLayout,
            "StableDiffusionXLControlNetInpaintPipeline",
            controlnet=UNET_CONTROLNET,
            grown=StableDiffusionLayout,
        ),
    },
)
