"""Stable Diffusion 1.x and 2.x, and layouts of other models over them; and small models that are fed likewise, and
start from a smooth fill or from the image itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inpaint_module.base_models.controlnet import ControlNetKind, KeptMaskCondition
from inpaint_module.base_models.denoiser_call import DenoiserCall
from inpaint_module.base_models.family import Family, TextFolder, TextOptions, Way
from inpaint_module.base_models.layout import BLACK, Condition, DenoiserLayout, PlainLayout
from inpaint_module.base_models.text import FrozenTextEncoder, TextConditioning, checked_clip_skip
from inpaint_module.encoder import Fill, InpaintEncoder, InpaintLatents


class StableDiffusionLayout(DenoiserLayout):
    """Stable Diffusion 1.5, 2 and XL inpainting, 9 channels: noisy, mask (1 = inpaint), masked image.

    Matches `StableDiffusionInpaintPipeline` and `StableDiffusionXLInpaintPipeline` of diffusers.
    """

    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, 2 C + 1, h, w)."""
        return torch.cat([noisy, cells, masked], dim=1)

    def in_channels(self, channels: int) -> int:
        """2 C + 1."""
        return 2 * channels + 1


class PowerPaintLayout(StableDiffusionLayout):
    """PowerPaint v1, 9 channels: as Stable Diffusion inpainting, but the hole is black.

    Follows open-mmlab/PowerPaint `train_ppt1_sd15.py` of its dev branch. The pipeline of its main branch fills with
    grey; for weights that it serves, take `StableDiffusionLayout`. For a loop of your own: its task prompts are not
    learned here.
    """

    fill = BLACK
    own_loop = True


class LatentDiffusionLayout(StableDiffusionLayout):
    """LDM inpainting, 7 channels: noisy, masked image with a black hole, mask as -1 (keep) and +1 (inpaint).

    Follows CompVis/latent-diffusion `scripts/inpaint.py` (Rombach et al. 2022).
    """

    fill = BLACK

    def assemble(self, noisy: Tensor, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, 2 C + 1, h, w)."""
        return torch.cat([noisy, masked, 2 * cells - 1], dim=1)


class BrushNetLayout(KeptMaskCondition):
    """Condition of BrushNet over Stable Diffusion 1.5 or XL, 5 channels: masked image, mask (1 = keep), hole black.

    Follows TencentARC/BrushNet `pipeline_brushnet.py` (`brushnet_cond`), and so does PowerPaint v2.
    """


class PixelCondition(Condition):
    """The image in 0..1, its grown mask at -1, 3 channels: of inpaint ControlNets of Stable Diffusion 1.x, 2.x and XL.

    Follows lllyasviel/control_v11p_sd15_inpaint and its successors: so is `control_image` to be made for
    `StableDiffusionControlNetInpaintPipeline` and `StableDiffusionXLControlNetInpaintPipeline` of diffusers.
    """

    eats_masked = False
    call_with = "control_image=torch.where(mask > 0.5, -1.0, image), a tensor (B, 3, H, W)"

    def from_batch(self, encoder: InpaintEncoder, images: Tensor, masks: Tensor, latents: InpaintLatents) -> Tensor:
        """To (B, 3, H, W)."""
        filled = encoder.fill_hole(images, masks)
        return torch.where(filled.noise_mask > 0.5, -1.0, filled.image)

    def in_channels(self, channels: int) -> int:
        """3."""
        return 3

    def check(self, encoder: InpaintEncoder) -> None:
        """Nothing: it takes no latents."""


class StableDiffusionText(TextConditioning):
    """Stable Diffusion 1.x and 2.x: the last hidden states (B, 77, D) of one CLIP, as `encoder_hidden_states`.

    Args:
        encoder: CLIPTextModel and its tokenizer.
        clip_skip: 1 reads the last layer but one, which some programs call 2, and ComfyUI -2.

    Raises:
        ValueError: fewer layers than `clip_skip`.
    """

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


def _text(folder: TextFolder, options: TextOptions) -> StableDiffusionText:
    return StableDiffusionText(folder.encoder(1), clip_skip=options.clip_skip)


def _new_controlnet(unet: Any, layers: int | None) -> nn.Module:
    from diffusers import ControlNetModel

    if layers is not None:
        raise ValueError(
            f"base.controlnet.layers: expected null, as a ControlNet of a U-Net has all its blocks; got {layers}"
        )
    controlnet: Any = ControlNetModel.from_unet(unet)
    channels = unet.config.out_channels
    if unet.config.in_channels != channels:  # an inpainting model's: a ControlNet gets the noisy latents alone
        whole = controlnet.conv_in
        controlnet.conv_in = nn.Conv2d(channels, whole.out_channels, whole.kernel_size, padding=whole.padding)
        controlnet.conv_in.load_state_dict({"weight": whole.weight[:, :channels], "bias": whole.bias})
        controlnet.register_to_config(in_channels=channels)
    return controlnet


UNET_CONTROLNET = ControlNetKind(
    "ControlNetModel", _new_controlnet, PixelCondition, "controlnet_cond_embedding.conv_in"
)
STABLE_DIFFUSION = Family(
    name="Stable Diffusion 1.x and 2.x",
    pipelines=("StableDiffusion",),
    text=StableDiffusionText,
    read_text=_text,
    call=DenoiserCall(),
    ways={
        "channels": Way(StableDiffusionLayout, "StableDiffusionInpaintPipeline"),
        "plain": Way(PlainLayout, "StableDiffusionInpaintPipeline"),
        "controlnet": Way(
            PlainLayout,
            "StableDiffusionControlNetInpaintPipeline",
            controlnet=UNET_CONTROLNET,
            grown=StableDiffusionLayout,
        ),
    },
)


class SmoothFillLayout(StableDiffusionLayout):
    """Noisy, mask (1 = inpaint) and masked image, whose hole the encoder fills smoothly: `fill: smooth`.

    No published model is fed so; take it for one of your own, with `FromFill` as its call.
    """

    fill: Fill = "smooth"


class WholeImageLayout(StableDiffusionLayout):
    """Noisy, mask (1 = inpaint) and the whole image, hole and all: for pairs, of which the image is no answer.

    For what can be seen through, such as watermarks. No published model is fed so; take it for one of your own, with
    `FromFill` as its call. Every sample needs a target.
    """

    reference = "image"


class FromFill(DenoiserCall):
    """The denoiser says how clean latents differ from those of the masked image, or the whole one, whatever the noise.

    What it says, less the masked image's latents, is a prediction of velocity (`prediction_type: v_prediction`;
    Salimans and Ho 2022, "Progressive distillation", appendix D). In pure noise, as a scheduler with
    `rescale_betas_zero_snr` begins, velocity is minus the clean latents, so that a denoiser that says 0 gives the
    smooth fill, or the image: that is where a training with a zeroed last layer starts.
    """

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """(B, C, h, w); `inputs` are those of `SmoothFillLayout` or `WholeImageLayout`, (B, 2 C + 1, h, w)."""
        said = super().__call__(denoiser, inputs, timesteps, conditions, size)
        return said - inputs[:, -said.shape[1] :].to(said)
