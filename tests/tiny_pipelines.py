"""Tiny random pipelines of the real diffusers classes, and the first tensors that they hand a denoiser.

No text encoder is needed: prompts go in as embeddings. The pipelines sample the posterior of the masked image where
training takes its mode; these autoencoders have a posterior of zero variance, so that the sample is the mode and the
pipelines' own code can be compared exactly. `give_variance` gives it back to one, for comparisons of samples.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxFillPipeline,
    FluxTransformer2DModel,
    QwenImageControlNetInpaintPipeline,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
    ZImageControlNetInpaintPipeline,
    ZImageControlNetModel,
    ZImageTransformer2DModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from tiny_vaes import kl
from torch import Tensor, nn

TEXT = 16
NO_TEXT = {"text_encoder": None, "tokenizer": None}
NO_TEXT_2 = {**NO_TEXT, "text_encoder_2": None, "tokenizer_2": None}
NO_TEXT_3 = {**NO_TEXT_2, "text_encoder_3": None, "tokenizer_3": None}


class Captured(Exception):
    """Stops a pipeline at its first denoiser call."""


class _SureKL(AutoencoderKL):
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        moments = super().encode(x).latent_dist.parameters
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments, deterministic=True))


class _SureQwenImage(AutoencoderKLQwenImage):
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput:
        moments = super().encode(x).latent_dist.parameters
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments, deterministic=True))


def give_variance(vae: nn.Module) -> None:
    """Let an autoencoder of this file have the posterior that its weights say."""
    vae.__class__ = type(vae).__mro__[1]


def generator() -> torch.Generator:
    """Gives the draws of pipelines under `first_call`, which seeds the global one alike for those that use it."""
    return torch.Generator().manual_seed(5)


def first_call(module: nn.Module, pipeline: DiffusionPipeline, **call: Any) -> dict[str, Any]:
    """The keyword arguments of the first call of `module` when `pipeline` runs; the first positional one is "input"."""
    captured: dict[str, Any] = {}

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.update(kwargs, **({"input": args[0], "positional": args} if args else {}))
        raise Captured

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    pipeline.set_progress_bar_config(disable=True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator().initial_seed())
            pipeline(num_inference_steps=2, **{"output_type": "latent"} | call)
    except Captured:
        return captured
    finally:
        handle.remove()
    raise AssertionError("the pipeline never called its denoiser")


def autoencoder(
    channels: int, scaling_factor: float, shift_factor: float | None = None, blocks: int = 4
) -> AutoencoderKL:
    """AutoencoderKL of ratio 2**(blocks - 1), its posterior without variance."""
    torch.manual_seed(0)
    return kl(channels, blocks, _SureKL, scaling_factor=scaling_factor, shift_factor=shift_factor)


def flux_autoencoder() -> AutoencoderKL:
    """With the scale and shift of Flux.1 and Z-Image."""
    return autoencoder(16, 0.3611, 0.1159)


def sd3_autoencoder() -> AutoencoderKL:
    """With the scale and shift of SD3."""
    return autoencoder(16, 1.5305, 0.0609)


def unet(in_channels: int = 4, **config: Any) -> UNet2DConditionModel:
    """A text-conditioned U-Net over 4 latent channels."""
    torch.manual_seed(1)
    return UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT,
        attention_head_dim=4,
        norm_num_groups=4,
        **config,
    ).eval()


def unet_xl(in_channels: int = 4) -> UNet2DConditionModel:
    """The same, told sizes and pooled text as in Stable Diffusion XL."""
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 2}
    return unet(in_channels, **added, projection_class_embeddings_input_dim=TEXT + 6 * 2)


def sd3_transformer(in_channels: int = 16, **config: Any) -> SD3Transformer2DModel:
    """An SD3 transformer that puts out 16 channels."""
    torch.manual_seed(1)
    return SD3Transformer2DModel(**_SD3 | config, in_channels=in_channels).eval()


_SD3 = {
    "sample_size": 8,
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "caption_projection_dim": 16,
    "pooled_projection_dim": TEXT,
    "pos_embed_max_size": 8,
}
_FLUX = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "pooled_projection_dim": TEXT,
    "axes_dims_rope": (4, 2, 2),
}
_QWEN = {
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (4, 2, 2),
}


def flux_transformer(in_channels: int = 64, out_channels: int | None = None, **config: Any) -> FluxTransformer2DModel:
    """A Flux transformer over packed tokens."""
    torch.manual_seed(1)
    return FluxTransformer2DModel(**_FLUX | config, in_channels=in_channels, out_channels=out_channels).eval()


def stable_diffusion() -> StableDiffusionInpaintPipeline:
    """Stable Diffusion 1.5 inpainting."""
    return StableDiffusionInpaintPipeline(
        vae=autoencoder(4, 0.18215),
        unet=unet(9, sample_size=64),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **NO_TEXT,
    )


def stable_diffusion_xl() -> StableDiffusionXLInpaintPipeline:
    """Stable Diffusion XL inpainting."""
    return StableDiffusionXLInpaintPipeline(
        vae=autoencoder(4, 0.13025),
        unet=unet_xl(9),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        add_watermarker=False,
        **NO_TEXT_2,
    )


def stable_diffusion_3() -> StableDiffusion3InpaintPipeline:
    """Stable Diffusion 3 inpainting with a 33-channel transformer."""
    return StableDiffusion3InpaintPipeline(
        vae=sd3_autoencoder(),
        transformer=sd3_transformer(33),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **NO_TEXT_3,
    )


def stable_diffusion_3_controlnet() -> StableDiffusion3ControlNetInpaintingPipeline:
    """Stable Diffusion 3 with the inpaint ControlNet."""
    return StableDiffusion3ControlNetInpaintingPipeline(
        vae=sd3_autoencoder(),
        transformer=sd3_transformer(),
        controlnet=SD3ControlNetModel(**_SD3, extra_conditioning_channels=1),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **NO_TEXT_3,
    )


def flux_fill() -> FluxFillPipeline:
    """Flux.1 Fill."""
    return FluxFillPipeline(
        vae=flux_autoencoder(),
        transformer=flux_transformer(384, 64),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **NO_TEXT_2,
    )


def flux_controlnet() -> FluxControlNetInpaintPipeline:
    """Flux.1 inpainting with a ControlNet."""
    return FluxControlNetInpaintPipeline(
        vae=flux_autoencoder(),
        transformer=flux_transformer(),
        controlnet=FluxControlNetModel(**_FLUX),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **NO_TEXT_2,
    )


def qwen_image_transformer(**config: Any) -> QwenImageTransformer2DModel:
    """A Qwen-Image transformer over packed tokens."""
    torch.manual_seed(1)
    return QwenImageTransformer2DModel(**_QWEN | config).eval()


def flux_2_transformer() -> Flux2Transformer2DModel:
    """A Flux.2 transformer over cells of 16 channels, told three layers of text."""
    torch.manual_seed(1)
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    small = {"joint_attention_dim": 3 * TEXT, "timestep_guidance_channels": 16, "axes_dims_rope": (2, 2, 2, 2)}
    return Flux2Transformer2DModel(in_channels=16, guidance_embeds=False, **sizes, **small).eval()


def chroma_transformer() -> ChromaTransformer2DModel:
    """A Chroma transformer over packed tokens."""
    torch.manual_seed(1)
    sizes = {key: value for key, value in _FLUX.items() if key != "pooled_projection_dim"}
    small = {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1}
    return ChromaTransformer2DModel(**sizes, **small).eval()


def z_image_transformer() -> ZImageTransformer2DModel:
    """A Z-Image transformer of 16 channels."""
    torch.manual_seed(1)
    sizes = {"dim": 16, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "n_layers": 1, "axes_dims": [4, 2, 2]}
    return ZImageTransformer2DModel(**sizes, cap_feat_dim=TEXT).eval()


def qwen_image_controlnet() -> QwenImageControlNetInpaintPipeline:
    """Qwen-Image with the inpaint ControlNet."""
    torch.manual_seed(0)
    return QwenImageControlNetInpaintPipeline(
        vae=_SureQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        transformer=QwenImageTransformer2DModel(**_QWEN),
        controlnet=QwenImageControlNetModel(**_QWEN, extra_condition_channels=4),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **NO_TEXT,
    )


def z_image_controlnet() -> ZImageControlNetInpaintPipeline:
    """Z-Image with the inpaint ControlNet."""
    sizes = {"dim": 16, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    places = {"control_layers_places": [0], "control_refiner_layers_places": [0]}
    torch.manual_seed(0)
    return ZImageControlNetInpaintPipeline(
        vae=flux_autoencoder(),
        transformer=ZImageTransformer2DModel(**sizes, n_layers=1, cap_feat_dim=TEXT, axes_dims=[4, 2, 2]),
        controlnet=ZImageControlNetModel(**sizes, **places, control_in_dim=33),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        **NO_TEXT,
    )
