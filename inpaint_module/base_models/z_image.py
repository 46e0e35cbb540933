"""Z-Image."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from inpaint_module.base_models.denoiser_call import DenoiserCall, matched
from inpaint_module.base_models.family import Family, TextFolder, TextOptions, Way, without_clip
from inpaint_module.base_models.layout import ControlNetCondition, PlainLayout
from inpaint_module.base_models.text import PipelineText
from inpaint_module.encoder import InpaintLatents


class ZImageControlNetLayout(ControlNetCondition):
    """Condition of the Z-Image inpaint ControlNet, 33 channels, one frame: control, mask (1 = keep), masked image.

    Matches `ZImageControlNetInpaintPipeline` of diffusers (`control_context`), which always has a control image;
    without one the control is zero, as in aigc-apps/VideoX-Fun `pipeline_z_image_control.py`.
    """

    multiple = 2

    def __call__(self, noisy: Tensor, latents: InpaintLatents, control: Tensor | None = None) -> Tensor:
        """As `ControlNetCondition`; `control` are normalized latents (B, C, h, w), such as of a pose, or None."""
        condition = super().__call__(noisy, latents)
        control = torch.zeros_like(noisy) if control is None else control.to(noisy)
        return torch.cat([control, condition], dim=1).unsqueeze(2)

    def assemble(self, cells: Tensor, masked: Tensor) -> Tensor:
        """The part after the control: (B, C + 1, h, w)."""
        return torch.cat([1 - cells, masked], dim=1)

    def in_channels(self, channels: int) -> int:
        """2 C + 1."""
        return 2 * channels + 1


class ZImagePlainLayout(PlainLayout):
    """Noisy latents alone, 16 channels. Matches `ZImageInpaintPipeline`."""

    multiple = 2  # patches of 2 x 2


class ZImageCall(DenoiserCall):
    """Call ZImageTransformer2DModel: time from 0 (noise) to 1, lists in; it says image - noise."""

    even_steps = True

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See `DenoiserCall`."""
        told = matched(conditions, denoiser.dtype)
        said = denoiser(*_placed(denoiser, inputs, timesteps), **told).sample
        return -torch.stack(list(said)).squeeze(2)

    def guided(self, told: Tensor, untold: Tensor, scale: float) -> Tensor:
        """As `DenoiserCall.guided`; its pipelines count the scale from 0, so theirs is one less."""
        return told + (scale - 1) * (told - untold)


def _placed(model: Any, inputs: Tensor, timesteps: Tensor) -> tuple[list[Tensor], Tensor]:
    """Pictures of one frame, and times."""
    pictures = list(inputs.to(model.dtype).unsqueeze(2).unbind(0))
    return pictures, (1000 - timesteps.expand(len(inputs))) / 1000


class ZImageText(PipelineText):
    """Z-Image: the penultimate hidden states of a Qwen3, a tensor for each caption, as long as it is.

    Args:
        encoder: Qwen3Model and its tokenizer, 512 tokens in the pipeline.
    """

    pipeline = "ZImagePipeline"
    arguments: Mapping[str, Any] = MappingProxyType({"do_classifier_free_guidance": False})

    def named(self, read: Any) -> dict[str, Any]:
        """See `PipelineText.named`."""
        return {"cap_feats": list(read[0])}


def _text(folder: TextFolder, options: TextOptions) -> ZImageText:
    without_clip("Z-Image", options)
    return ZImageText(folder.encoder(1, options.length or 512))


Z_IMAGE = Family(
    name="Z-Image",
    pipelines=("ZImage",),
    text=ZImageText,
    read_text=_text,
    call=ZImageCall(),
    ways={"plain": Way(ZImagePlainLayout, "ZImageInpaintPipeline")},
)
