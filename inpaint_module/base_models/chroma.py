"""Chroma, a Flux.1 without guidance and pooled text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from inpaint_module.base_models.denoiser_call import DenoiserCall, matched
from inpaint_module.base_models.family import Family, TextFolder, TextOptions, Way, without_clip
from inpaint_module.base_models.flux import token_places
from inpaint_module.base_models.layout import PackedPlainLayout, unpack
from inpaint_module.base_models.text import PipelineText


class ChromaCall(DenoiserCall):
    """Call ChromaTransformer2DModel: as Flux, with a mask of the tokens of text and picture to attend to."""

    even_steps = True

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See `DenoiserCall`."""
        more = dict(conditions)
        text = more["attention_mask"]
        more["attention_mask"] = torch.cat([text, text.new_ones(inputs.shape[:2])], dim=1)
        more["img_ids"] = token_places(*size, inputs.device)
        time = timesteps.to(denoiser.dtype).expand(len(inputs)) / 1000
        named = {"hidden_states": inputs.to(denoiser.dtype), "timestep": time, **matched(more, denoiser.dtype)}
        return unpack(denoiser(**named).sample, *size)


class ChromaText(PipelineText):
    """Chroma: the tokens of a T5, of which the first of the padding is attended to, too.

    Args:
        encoder: T5EncoderModel and its tokenizer, 256 tokens in the inpaint pipeline.
    """

    pipeline = "ChromaPipeline"
    arguments: Mapping[str, Any] = MappingProxyType({"do_classifier_free_guidance": False})

    def named(self, read: Any) -> dict[str, Any]:
        """See `PipelineText.named`."""
        return {"encoder_hidden_states": read[0], "txt_ids": read[1], "attention_mask": read[2]}


def _text(folder: TextFolder, options: TextOptions) -> ChromaText:
    without_clip("Chroma", options)
    return ChromaText(folder.encoder(1, options.length or 256))


CHROMA = Family(
    name="Chroma",
    pipelines=("Chroma",),
    text=ChromaText,
    read_text=_text,
    call=ChromaCall(),
    ways={"plain": Way(PackedPlainLayout, "ChromaInpaintPipeline")},
)
