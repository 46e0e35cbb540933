"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_module.base_models.controlnet import ControlNetKind, KeptMaskCondition, layers_of
from inpaint_module.base_models.denoiser_call import ControlNetInputs, DenoiserCall, matched
from inpaint_module.base_models.family import Family, TextFolder, TextOptions, Way
from inpaint_module.base_models.layout import PlainLayout
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


class StableDiffusion3NoisyLayout(StableDiffusion3PlainLayout):
    """The same for a transformer beside a ControlNet, whose pipeline does not blend.

    Matches `StableDiffusion3ControlNetInpaintingPipeline`.
    """

    blends = False


class StableDiffusion3ControlNetLayout(KeptMaskCondition):
    """Condition of the Stable Diffusion 3 inpaint ControlNet, 17 channels: masked image, mask (1 = keep), hole black.

    Matches `StableDiffusion3ControlNetInpaintingPipeline` of diffusers (`controlnet_cond`).
    """

    multiple = 2
    call_with = "control_image=image * 2 - 1 and control_mask=mask, tensors (B, 3, H, W) and (B, 1, H, W)"


class StableDiffusion3Call(DenoiserCall):
    """Call SD3Transformer2DModel, which takes its timesteps by name."""

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See `DenoiserCall`."""
        more = matched(conditions, denoiser.dtype)
        return denoiser(hidden_states=inputs.to(denoiser.dtype), timestep=timesteps, **more).sample

    def residuals(self, controlnet: Any, given: ControlNetInputs) -> dict[str, Any]:
        """See `DenoiserCall.residuals`; the pooled text is zeros, as in the pipeline."""
        pooled = torch.zeros_like(given.conditions["pooled_projections"])
        more = matched(
            {**given.conditions, "pooled_projections": pooled, "controlnet_cond": given.condition}, controlnet.dtype
        )
        noisy = given.inputs.to(controlnet.dtype)
        said = controlnet(hidden_states=noisy, timestep=given.timesteps, conditioning_scale=given.scale, **more)
        return {"block_controlnet_hidden_states": said.controlnet_block_samples}


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


def _new_controlnet(transformer: Any, layers: int | None) -> nn.Module:
    from diffusers import SD3ControlNetModel

    # the last block of the transformer makes no text, and so has other weights than a ControlNet's
    count = layers_of(layers, 12, transformer.config.num_layers - 1)
    config = {**transformer.config, "num_layers": count, "extra_conditioning_channels": 1}
    controlnet = SD3ControlNetModel.from_config(config)
    for name in ("pos_embed", "time_text_embed", "context_embedder"):
        getattr(controlnet, name).load_state_dict(getattr(transformer, name).state_dict())
    controlnet.transformer_blocks.load_state_dict(transformer.transformer_blocks[:count].state_dict())
    for weight in controlnet.pos_embed_input.parameters():
        nn.init.zeros_(weight)
    return controlnet


_CONTROLNET = ControlNetKind(
    "SD3ControlNetModel", _new_controlnet, StableDiffusion3ControlNetLayout, "pos_embed_input.proj"
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
        "controlnet": Way(
            StableDiffusion3NoisyLayout, "StableDiffusion3ControlNetInpaintingPipeline", controlnet=_CONTROLNET
        ),
    },
)
