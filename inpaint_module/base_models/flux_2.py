"""Flux.2 Klein."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inpaint_module.base_models.denoiser_call import DenoiserCall, matched
from inpaint_module.base_models.family import Family, TextFolder, TextOptions, Way, without_clip
from inpaint_module.base_models.layout import ReferenceLayout
from inpaint_module.base_models.text import FrozenTextEncoder, PipelineText
from inpaint_module.encoder import InpaintLatents


class Flux2EditLayout(ReferenceLayout):
    """A token for each cell of the noisy latents, then those of the picture, which are put back where it is known.

    Matches `Flux2KleinInpaintPipeline` of diffusers called with the reference as its `image`: of the pictures it may
    be shown this one is always the first. Its VAE folds 2 x 2 latents into one cell of 128 channels, and the mask comes
    to these by bilinear interpolation.
    """

    multiple = 1
    served_reduce = "bilinear"
    references = ("masked", "image")
    reference_call = (
        "has one picture, to show and to blend with, and brings more than 1024 x 1024 pixels to that: call it with "
        "image={}, a tensor (B, 3, H, W)"
    )

    def __init__(self, reduce: str = "bilinear", reference: str = "masked"):
        super().__init__(reduce, reference)

    def known(self, latents: InpaintLatents) -> Tensor:
        """The latents of the reference."""
        return latents.samples

    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, 2 * h * w, C)."""
        return torch.cat([each.flatten(2).transpose(1, 2) for each in (noisy, masked)], dim=1)

    def in_channels(self, channels: int) -> int:
        """C."""
        return channels


class Flux2Call(DenoiserCall):
    """Call Flux2Transformer2DModel: time in 0..1, the place of every token in four numbers, tokens in and out."""

    even_steps = True

    def shift(self, size: tuple[int, int], steps: int) -> float:
        """By the numbers of cells and steps, as the pipeline's own formula has it."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein_inpaint import compute_empirical_mu

        return compute_empirical_mu(image_seq_len=size[0] * size[1], num_steps=steps)

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See `DenoiserCall`."""
        count = size[0] * size[1]
        places = [_places(number, *size, inputs.device) for number in range(inputs.shape[1] // count)]
        told = matched(conditions, denoiser.dtype)
        tokens = denoiser(
            hidden_states=inputs.to(denoiser.dtype),
            timestep=timesteps.to(denoiser.dtype).expand(len(inputs)) / 1000,
            guidance=None,
            img_ids=torch.cat(places).expand(len(inputs), -1, -1),
            **told,
        ).sample
        return tokens[:, :count].transpose(1, 2).unflatten(2, size)


def _places(picture: int, height: int, width: int, device: torch.device) -> Tensor:
    """(h * w, 4): of a picture's cells 10 times its number, which is 0 for the noisy one; row, column, 0."""
    axes = (torch.tensor([10 * picture]), torch.arange(height), torch.arange(width), torch.zeros(1, dtype=torch.int64))
    return torch.cartesian_prod(*axes).to(device)


class Flux2Text(PipelineText):
    """Flux.2 Klein: hidden states of three layers of a Qwen3, side by side, of all 512 tokens.

    Args:
        encoder: Qwen3ForCausalLM and its tokenizer, 512 tokens in the pipeline.
        is_distilled: of the base model, whose pipeline then guides by no empty caption; `export` hands it on.
    """

    pipeline = "Flux2KleinInpaintPipeline"

    def __init__(self, encoder: FrozenTextEncoder, *, is_distilled: bool = False):
        super().__init__(encoder, is_distilled=is_distilled)

    def named(self, read: Any) -> dict[str, Any]:
        """See `PipelineText.named`."""
        return {"encoder_hidden_states": read[0], "txt_ids": read[1]}


def _text(folder: TextFolder, options: TextOptions) -> Flux2Text:
    without_clip("Flux.2", options)
    return Flux2Text(folder.encoder(1, options.length or 512), is_distilled=bool(folder.index.get("is_distilled")))


FLUX_2 = Family(
    name="Flux.2 Klein",
    pipelines=("Flux2Klein",),
    text=Flux2Text,
    read_text=_text,
    call=Flux2Call(),
    ways={"edit": Way(Flux2EditLayout, "Flux2KleinInpaintPipeline")},
)
