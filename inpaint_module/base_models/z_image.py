"""Z-Image."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from inpaint_module.base_models.controlnet import ControlNetCondition, ControlNetKind, layers_of
from inpaint_module.base_models.denoiser_call import ControlNetInputs, DenoiserCall, matched
from inpaint_module.base_models.family import Family, TextFolder, TextOptions, Way, without_clip
from inpaint_module.base_models.layout import PlainLayout
from inpaint_module.base_models.text import PipelineText
from inpaint_module.encoder import InpaintEncoder, InpaintLatents


class ZImageControlNetLayout(ControlNetCondition):
    """Condition of the Z-Image inpaint ControlNet, 33 channels, one frame: control, mask (1 = keep), masked image.

    Matches `ZImageControlNetInpaintPipeline` of diffusers (`control_context`), which always has a control image: in
    training it is the masked image. In a loop of your own, without one the control is zero, as in aigc-apps/VideoX-Fun
    `pipeline_z_image_control.py`.
    """

    multiple = 2
    call_with = (
        "image=image * 2 - 1, mask_image=mask and control_image=torch.where(mask > 0.5, 0.0, image * 2 - 1), tensors "
        "(B, 3, H, W) and (B, 1, H, W)"
    )

    def from_batch(self, encoder: InpaintEncoder, images: Tensor, masks: Tensor, latents: InpaintLatents) -> Tensor:
        """With the masked image as the control."""
        return self(latents.samples, latents, latents.samples)

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


class ZImageNoisyLayout(ZImagePlainLayout):
    """The same beside a ControlNet, whose pipeline does not blend."""

    blends = False


class ZImageCall(DenoiserCall):
    """Call ZImageTransformer2DModel: time from 0 (noise) to 1, lists in; it says image - noise."""

    even_steps = True

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See `DenoiserCall`."""
        more = matched(conditions, denoiser.dtype)
        said = denoiser(*_placed(denoiser.dtype, inputs, timesteps), **more).sample
        return -torch.stack(list(said)).squeeze(2)

    def residuals(self, controlnet: Any, given: ControlNetInputs) -> dict[str, Any]:
        """See `DenoiserCall.residuals`: by the numbers of the layers that they are added after."""
        dtype = controlnet.t_embedder.mlp[0].weight.dtype  # of the base model, which reads all but the condition
        more = matched(given.conditions, dtype)
        pictures, times = _placed(dtype, given.inputs, given.timesteps)
        said = controlnet(
            pictures, times, control_context=given.condition.to(dtype), conditioning_scale=given.scale, **more
        )
        return {"controlnet_block_samples": said}

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """As `DenoiserCall.guided`; its pipelines count the scale from 0, so theirs is one less."""
        return conditional + (scale - 1) * (conditional - unconditional)


def _placed(dtype: torch.dtype, inputs: Tensor, timesteps: Tensor) -> tuple[list[Tensor], Tensor]:
    """Pictures of one frame, and times."""
    pictures = list(inputs.to(dtype).unsqueeze(2).unbind(0))
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


def _new_controlnet(transformer: Any, layers: int | None) -> nn.Module:
    """As alibaba-pai's Z-Image-Turbo-Fun-Controlnet-Union-2.1: beside every second layer, and all that refine noise."""
    from diffusers import ZImageControlNetModel

    config = transformer.config
    count = layers_of(layers, (config.n_layers + 1) // 2, config.n_layers)
    places = [number * config.n_layers // count for number in range(count)]
    shared = ("all_patch_size", "all_f_patch_size", "dim", "n_refiner_layers", "n_heads", "n_kv_heads", "norm_eps")
    controlnet: Any = ZImageControlNetModel(
        control_layers_places=places,
        control_refiner_layers_places=list(range(config.n_refiner_layers)),
        control_in_dim=2 * config.in_channels + 1,
        add_control_noise_refiner="control_noise_refiner",
        qk_norm=config.qk_norm,
        **{name: config[name] for name in shared},
    )
    controlnet.gradient_checkpointing = False  # which diffusers 0.42 forgets
    pairs = [*zip(controlnet.control_layers, (transformer.layers[place] for place in places), strict=True)]
    pairs += zip(controlnet.control_noise_refiner, transformer.noise_refiner, strict=True)
    for mine, theirs in pairs:
        mine.load_state_dict(theirs.state_dict(), strict=False)  # all but the projections, which start at zero
    return controlnet


_SHARED: tuple[str, ...] = ("t_scale", "t_embedder", "all_x_embedder", "cap_embedder", "rope_embedder", "noise_refiner")
_SHARED += ("context_refiner", "x_pad_token", "cap_pad_token")


def _link(controlnet: Any, transformer: Any) -> None:
    """What `ZImageControlNetModel.from_transformer` sets, kept out of the ControlNet's parameters and state dict."""
    controlnet.__dict__.update({name: getattr(transformer, name) for name in _SHARED})


_CONTROLNET = ControlNetKind(
    "ZImageControlNetModel", _new_controlnet, ZImageControlNetLayout, "control_all_x_embedder.2-1", 4, _link
)
Z_IMAGE = Family(
    name="Z-Image",
    pipelines=("ZImage",),
    text=ZImageText,
    read_text=_text,
    call=ZImageCall(),
    ways={
        "plain": Way(ZImagePlainLayout, "ZImageInpaintPipeline"),
        "controlnet": Way(ZImageNoisyLayout, "ZImageControlNetInpaintPipeline", controlnet=_CONTROLNET),
    },
)
