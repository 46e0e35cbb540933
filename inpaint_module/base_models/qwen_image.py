"""Qwen-Image and Qwen-Image-Edit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inpaint_module.base_models.controlnet import ControlNetKind, PackedKeptMaskCondition, layers_of
from inpaint_module.base_models.denoiser_call import ControlNetInputs, DenoiserCall, matched
from inpaint_module.base_models.family import Family, TextFolder, TextOptions, Way, without_clip
from inpaint_module.base_models.layout import PackedNoisyLayout, PackedPlainLayout, ReferenceLayout, pack, unpack
from inpaint_module.base_models.text import FrozenTextEncoder, PipelineText
from inpaint_module.batch import Batch
from inpaint_module.encoder import InpaintLatents
from inpaint_module.pixels import to_bytes


class QwenImageControlNetLayout(PackedKeptMaskCondition):
    """Condition of the Qwen-Image inpaint ControlNet, 68 channels a token: masked image, mask (1 = keep), hole black.

    Matches `QwenImageControlNetInpaintPipeline` of diffusers (`controlnet_cond`).
    """

    call_with = "control_image=image * 2 - 1 and control_mask=mask, tensors (B, 3, H, W) and (B, 1, H, W)"


class QwenImageEditLayout(ReferenceLayout):
    """The tokens of the noisy latents, then those of the reference, which the pipeline puts back where it is known.

    Matches `QwenImageEditInpaintPipeline` of diffusers called with the reference as its `image`. It takes pictures of
    8 bits alone, so the hole is filled with 128 of 255.
    """

    fill = 128 / 255
    references = ("masked", "image")
    reference_call = (
        "has one picture, to show and to blend with, and brings it to about 1024 x 1024 pixels: train at that, and "
        "call it with image={}, as PIL pictures, which hold 0.502 as 128"
    )

    def known(self, latents: InpaintLatents) -> Tensor:
        """The latents of the reference."""
        return latents.samples


class QwenImageCall(DenoiserCall):
    """Call QwenImageTransformer2DModel: time in 0..1, the shape of each picture in tokens, packed tokens in and out."""

    even_steps = True

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See `DenoiserCall`."""
        tokens = denoiser(**_named(denoiser, inputs, timesteps, conditions, size)).sample
        return unpack(tokens[:, : size[0] * size[1] // 4], *size)

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """As `DenoiserCall.guided`, then each token at the length of `conditional`, as in the pipelines."""
        wanted, mixed = pack(conditional), pack(unconditional + scale * (conditional - unconditional))
        lengths = [torch.norm(each, dim=-1, keepdim=True) for each in (wanted, mixed)]
        return unpack(mixed * (lengths[0] / lengths[1]), unconditional.shape[-2], unconditional.shape[-1])

    def residuals(self, controlnet: Any, given: ControlNetInputs) -> dict[str, Any]:
        """See `DenoiserCall.residuals`."""
        known = {**given.conditions, "controlnet_cond": given.condition}
        said = controlnet(
            conditioning_scale=given.scale, **_named(controlnet, given.inputs, given.timesteps, known, given.size)
        )
        return {"controlnet_block_samples": said.controlnet_block_samples}


def _named(
    model: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
) -> dict[str, Any]:
    """The arguments that a transformer and its ControlNet share, by name."""
    rows, columns = size[0] // 2, size[1] // 2
    pictures = inputs.shape[1] // (rows * columns)  # of an edit model the noisy one, then the reference
    shapes = [[(1, rows, columns)] * pictures] * len(inputs)
    time = timesteps.to(model.dtype).expand(len(inputs)) / 1000
    more = matched(conditions, model.dtype)
    return {"hidden_states": inputs.to(model.dtype), "timestep": time, "img_shapes": shapes, **more}


class QwenImageText(PipelineText):
    """Qwen-Image: the hidden states of a Qwen2.5-VL, padded to the longest caption, and which of them are padding.

    Args:
        encoder: Qwen2_5_VLForConditionalGeneration and its tokenizer, 512 tokens in the pipeline.
    """

    pipeline = "QwenImagePipeline"

    def named(self, read: Any) -> dict[str, Any]:
        """See `PipelineText.named`; no mask where all captions are of one length, as in the pipeline."""
        hidden, mask = read
        found = {"encoder_hidden_states": hidden}
        return found if mask is None else {**found, "encoder_hidden_states_mask": mask}


class QwenImageEditText(QwenImageText):
    """Qwen-Image-Edit: the hidden states of a Qwen2.5-VL that reads each caption beside the reference picture.

    Args:
        encoder: Qwen2_5_VLForConditionalGeneration and its tokenizer; the pipeline cuts no caption.
        processor: Qwen2VLProcessor.
    """

    pipeline = "QwenImageEditInpaintPipeline"
    sees = True

    def __init__(self, encoder: FrozenTextEncoder, processor: Any):
        super().__init__(encoder, processor=processor)

    def beside(self, captions: list[str], batch: Batch) -> dict[str, Any]:
        """See `TextConditioning.beside`: the reference pictures in bytes, on the CPU, as the pipeline has them."""
        return self.read(captions, image=list(to_bytes(batch["reference"]).cpu()))


def _text(folder: TextFolder, options: TextOptions) -> QwenImageText:
    without_clip("Qwen-Image", options)
    return QwenImageText(folder.encoder(1, options.length or 512))


def _edit_text(folder: TextFolder, options: TextOptions) -> QwenImageEditText:
    without_clip("Qwen-Image-Edit", options)
    if options.length is not None:
        raise ValueError(
            f"text.length: expected null for Qwen-Image-Edit, whose pipeline cuts no caption; got {options.length}"
        )
    return QwenImageEditText(folder.encoder(1), folder.processor())


def _new_controlnet(transformer: Any, layers: int | None) -> nn.Module:
    from diffusers import QwenImageControlNetModel

    config = transformer.config
    controlnet: Any = QwenImageControlNetModel.from_transformer(
        transformer,
        num_layers=layers_of(layers, 5, config.num_layers),
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        extra_condition_channels=4,
    )
    # which diffusers 0.42 forgets
    controlnet.txt_norm.load_state_dict(transformer.txt_norm.state_dict())
    return controlnet


_CONTROLNET = ControlNetKind(
    "QwenImageControlNetModel", _new_controlnet, QwenImageControlNetLayout, "controlnet_x_embedder"
)
QWEN_IMAGE = Family(
    name="Qwen-Image",
    pipelines=("QwenImage",),
    text=QwenImageText,
    read_text=_text,
    call=QwenImageCall(),
    ways={
        "plain": Way(PackedPlainLayout, "QwenImageInpaintPipeline"),
        "controlnet": Way(PackedNoisyLayout, "QwenImageControlNetInpaintPipeline", controlnet=_CONTROLNET),
    },
)
QWEN_IMAGE_EDIT = Family(
    name="Qwen-Image-Edit",
    pipelines=("QwenImageEdit",),
    text=QwenImageEditText,
    read_text=_edit_text,
    call=QwenImageCall(),
    ways={"edit": Way(QwenImageEditLayout, "QwenImageEditInpaintPipeline")},
)
