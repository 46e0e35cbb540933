"""Flux.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from inpaint_module.base_models.denoiser_call import DenoiserCall, matched
from inpaint_module.base_models.family import Family, TextFolder, TextOptions, Way
from inpaint_module.base_models.layout import (
    ControlNetCondition,
    DenoiserLayout,
    PackedKeptMaskCondition,
    PackedPlainLayout,
    pack,
    unpack,
)
from inpaint_module.base_models.text import FrozenTextEncoder, TextConditioning
from inpaint_module.batch import Batch
from inpaint_module.encoder import InpaintEncoder


class FluxFillLayout(DenoiserLayout):
    """Flux.1 Fill, 384 channels a token: noisy 64, masked image 64, all 8 x 8 mask pixels of its 2 x 2 cells 256.

    Matches `FluxFillPipeline` of diffusers. No mask pixel is lost, so there is no reduction to choose.
    """

    RATIO = 8
    multiple = 2

    def __init__(self) -> None:
        super().__init__()
        self.reduce = "space-to-depth"

    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, h/2 * w/2, 4 (2 C + 64)); `cells` are (B, 64, h, w)."""
        return pack(torch.cat([noisy, masked, cells], dim=1))

    def in_channels(self, channels: int) -> int:
        """4 (2 C + 64)."""
        return 4 * (2 * channels + self.RATIO**2)

    def check(self, encoder: InpaintEncoder) -> None:
        """As `Layout.check`; 384 channels need a VAE of ratio 8 too."""
        super().check(encoder)
        if encoder.vae.ratio != self.RATIO:
            raise ValueError(f"FluxFillLayout expects a VAE of ratio {self.RATIO}, got ratio {encoder.vae.ratio}")


class FluxControlNetLayout(ControlNetCondition):
    """Condition of a Flux ControlNet in diffusers, 64 channels a token: the masked image alone.

    Matches `FluxControlNetInpaintPipeline` of diffusers when its `control_image` is the image with a grey hole. That
    pipeline also packs the mask, but for blending and callbacks: its ControlNet is never told.
    """

    multiple = 2

    def assemble(self, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, h/2 * w/2, 4 C)."""
        return pack(masked)

    def in_channels(self, channels: int) -> int:
        """4 C."""
        return 4 * channels


class FluxInpaintControlNetLayout(PackedKeptMaskCondition):
    """Condition of alimama's Flux inpaint ControlNet, 68 channels a token: masked image, mask (1 = keep), hole black.

    Follows alimama-creative/FLUX-Controlnet-Inpainting; diffusers has no Flux ControlNet with room for a mask.
    """


class FluxCall(DenoiserCall):
    """Call FluxTransformer2DModel: time in 0..1, the place of every token, packed tokens in and out."""

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See `DenoiserCall`."""
        told = matched({**conditions, "img_ids": token_places(*size, inputs.device)}, denoiser.dtype)
        # the pipeline, too, rounds the time to the model's precision before the division
        time = timesteps.to(denoiser.dtype).expand(len(inputs)) / 1000
        tokens = denoiser(hidden_states=inputs.to(denoiser.dtype), timestep=time, **told).sample
        return unpack(tokens, *size)


def token_places(height: int, width: int, device: torch.device) -> Tensor:
    """For latents of h = `height`, w = `width`: (h/2 * w/2, 3) of 0, row and column of each 2 x 2 token."""
    rows, columns = torch.arange(height // 2, device=device), torch.arange(width // 2, device=device)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1).float()


class FluxText(TextConditioning):
    """Flux.1: the tokens of a T5, the pooled text of a CLIP, and the guidance that a distilled model is told.

    Args:
        encoder: CLIPTextModel and its tokenizer.
        encoder_2: T5EncoderModel and its tokenizer, 512 tokens in the pipeline.
        guidance: told to a transformer with `guidance_embeds`; 30 is what `FluxFillPipeline` says. None for one
            without.
    """

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


def _text(folder: TextFolder, options: TextOptions) -> FluxText:
    if options.clip_skip is not None:
        raise ValueError(
            f"clip_skip: expected null for Flux, which reads no layer of its CLIP; got {options.clip_skip}"
        )
    guidance = options.guidance if folder.transformer().get("guidance_embeds") else None
    return FluxText(folder.encoder(1), folder.encoder(2, options.length or 512), guidance=guidance)


FLUX = Family(
    name="Flux.1",
    pipelines=("Flux",),
    text=FluxText,
    read_text=_text,
    call=FluxCall(),
    ways={
        "channels": Way(FluxFillLayout, "FluxFillPipeline"),
        "plain": Way(PackedPlainLayout, "FluxInpaintPipeline", guidance=3.5),
    },
)
