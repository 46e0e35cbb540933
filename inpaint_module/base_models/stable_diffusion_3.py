"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_module.base_models.denoiser_call import DenoiserCall, matched
from inpaint_module.base_models.family import Family, TextFolder, TextOptions, Way
from inpaint_module.base_models.layout import KeptMaskCondition, PlainLayout
from inpaint_module.base_models.stable_diffusion import StableDiffusionLayout
from inpaint_module.base_models.text import FrozenTextEncoder, TextConditioning, checked_clip_skip


class StableDiffusion3Layout(StableDiffusionLayout):
    """Stable Diffusion 3 inpainting, 33 channels: noisy, mask (1 = inpaint), masked image.

    Matches `StableDiffusion3InpaintPipeline` of diffusers with a 33-channel transformer.
    """

    multiple = 2  # patches of 2 x 2


class StableDiffusion3PlainLayout(PlainLayout):
    """Noisy latents alone, 16 channels. Matches `StableDiffusion3InpaintPipeline` with a 16-channel transformer."""

    multiple = 2  # patches of 2 x 2


class StableDiffusion3ControlNetLayout(KeptMaskCondition):
    """Condition of the Stable Diffusion 3 inpaint ControlNet, 17 channels: masked image, mask (1 = keep), hole black.

    Matches `StableDiffusion3ControlNetInpaintingPipeline` of diffusers (`controlnet_cond`).
    """

    multiple = 2


class StableDiffusion3Call(DenoiserCall):
    """Call SD3Transformer2DModel, which takes its timesteps by name."""

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See `DenoiserCall`."""
        told = matched(conditions, denoiser.dtype)
        return denoiser(hidden_states=inputs.to(denoiser.dtype), timestep=timesteps, **told).sample


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


def _text(folder: TextFolder, options: TextOptions) -> StableDiffusion3Text:
    length = options.length or 256
    third = folder.encoder(3, length) if options.t5 and folder.has(3) else None
    width = folder.transformer()["joint_attention_dim"]
    return StableDiffusion3Text(
        folder.encoder(1), folder.encoder(2), third, width=width, length=length, clip_skip=options.clip_skip
    )


STABLE_DIFFUSION_3 = Family(
    name="Stable Diffusion 3",
    pipelines=("StableDiffusion3",),
    text=StableDiffusion3Text,
    read_text=_text,
    call=StableDiffusion3Call(),
    ways={
        "channels": Way(StableDiffusion3Layout, "StableDiffusion3InpaintPipeline"),
        "plain": Way(StableDiffusion3PlainLayout, "StableDiffusion3InpaintPipeline"),
    },
)
