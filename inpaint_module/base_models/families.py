"""All base models that are known, which of them a folder or a model's parts belong to, and what the pipeline of
diffusers that serves a model will do otherwise than its training did.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from inpaint_module.base_models.chroma import CHROMA
from inpaint_module.base_models.conditioning import Conditioning
from inpaint_module.base_models.controlnet import Control
from inpaint_module.base_models.family import Family
from inpaint_module.base_models.flux import FLUX
from inpaint_module.base_models.flux_2 import FLUX_2
from inpaint_module.base_models.layout import Layout, ReferenceLayout
from inpaint_module.base_models.qwen_image import QWEN_IMAGE, QWEN_IMAGE_EDIT
from inpaint_module.base_models.stable_diffusion import STABLE_DIFFUSION, StableDiffusionText
from inpaint_module.base_models.stable_diffusion_3 import STABLE_DIFFUSION_3
from inpaint_module.base_models.stable_diffusion_xl import STABLE_DIFFUSION_XL
from inpaint_module.base_models.text import TextConditioning
from inpaint_module.base_models.z_image import Z_IMAGE
from inpaint_module.encoder import InpaintEncoder
from inpaint_module.vae import DiffusersVAE

FAMILIES = (
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    STABLE_DIFFUSION_3,
    FLUX,
    FLUX_2,
    QWEN_IMAGE,
    QWEN_IMAGE_EDIT,
    Z_IMAGE,
    CHROMA,
)

_NO_INPAINTING = "of which the installed diffusers has no pipeline that inpaints"
SIBLINGS = {  # whose conditions are not those of their namesakes
    "KandinskyV22": "whose conditions are image embeddings of a prior, and which also learns a variance: not trained",
    "Flux2KleinKV": _NO_INPAINTING,
    "Flux2Pipeline": _NO_INPAINTING,
    "QwenImageEditPlus": _NO_INPAINTING,
    "QwenImageLayered": _NO_INPAINTING,
    "ZImageOmni": _NO_INPAINTING,
}


def family_of(index: Mapping[str, Any] | None, path: str) -> Family:
    """The family of a pipeline.

    Args:
        index: its model_index.json; None if there is none.
        path: where it was looked for, for the error.

    Raises:
        ValueError: no pipeline, or of a base model that is not known.
    """
    name = str((index or {}).get("_class_name", "none"))
    fitting = [(begin, family) for family in FAMILIES for begin in family.pipelines if name.startswith(begin)]
    if not fitting or name.startswith(tuple(SIBLINGS)) or (index or {}).get("requires_aesthetics_score"):
        reason = next((f", {reason}" for begin, reason in SIBLINGS.items() if name.startswith(begin)), "")
        known = ", ".join(begin for family in FAMILIES for begin in family.pipelines)
        raise ValueError(
            f"base model: expected a pipeline (no refiner) whose name begins with one of {known} at {path!r}, a folder "
            f"or hub name, got {name}{reason}"
        )
    return max(fitting, key=lambda each: len(each[0]))[1]


def serving_pipeline(conditioning: Conditioning, layout: Layout) -> str | None:
    """The name of the diffusers class that serves a denoiser with these conditions and this layout; None without text.

    Raises:
        ValueError: the pipelines of its base model feed their denoisers otherwise.
    """
    family = next((family for family in FAMILIES if type(conditioning) is family.text), None)
    if family is None:
        return None
    for way in family.ways.values():
        if type(layout) is way.layout:
            return way.pipeline
    known = ", ".join(f"{way.pipeline} as {way.layout.__name__} does" for way in family.ways.values())
    raise ValueError(
        f"layout: diffusers feeds a denoiser of {family.name} in {known}; got {type(layout).__name__}, which it cannot "
        "serve"
    )


def pipeline_class(name: str | None) -> Any:
    """The pipeline class of diffusers of this name; None for one of another home, see `Way.home`."""
    import diffusers

    return getattr(diffusers, name or "", None)


def mask_differences(encoder: InpaintEncoder, layout: Layout) -> list[str]:
    """Where an inpaint pipeline will feed its denoiser other masks than this encoder and layout did."""
    found = []
    if encoder.kernel.numel() > 1:
        found.append(
            "trained with a grown mask (grow_mask_by over 1), but diffusers' pipelines do not grow: grow it yourself "
            "before the call, or train with grow_mask_by: 0"
        )
    if layout.reduce not in (layout.served_reduce, "space-to-depth"):
        found.append(
            f"trained with reduce: {layout.reduce}, but diffusers' pipelines take {layout.served_reduce} for the "
            f"latent grid: train with reduce: {layout.served_reduce} for the very same input"
        )
    return found


def posterior_difference(encoder: InpaintEncoder, pipeline: Any = None) -> str | None:
    """How a pipeline's class, or most of them, encodes the masked image otherwise; None if alike."""
    source = "" if pipeline is None else inspect.getsource(pipeline)
    if 0 < source.count("retrieve_latents(") == source.count('sample_mode="argmax")'):
        return None
    side = 2 * encoder.vae.ratio
    grey = torch.full((1, 3, side, side), 0.5, device=encoder.kernel.device)
    if encoder.posterior == "sample" or encoder.vae.posterior(grey).std is None:
        return None
    return (
        "trained with the mode of the VAE's posterior (posterior: mode), but the pipeline samples it: the masked "
        "image's latents differ by noise of the posterior's standard deviation; posterior: sample trains with it"
    )


def controlnet_call(control: Control, pipeline: Any) -> list[str]:
    """How a pipeline's class has to be called for its ControlNet to get the condition that it had in training.

    Args:
        control: what trained beside the base model.
        pipeline: the class; None for one of another home than diffusers, whose scale is 1.0.
    """
    name, found = "controlnet_conditioning_scale", []
    default = inspect.signature(pipeline.__call__).parameters[name].default if pipeline else 1.0
    if default != control.scale:
        found.append(f"trained with {name} {control.scale}, but the pipeline's default is {default}: call it with ours")
    return [*found, f"the pipeline makes no condition of image and mask: call it with {control.condition.call_with}"]


def reference_call(layout: Layout) -> list[str]:
    """How a pipeline has to be called for an edit model to get the reference that it had in training."""
    if not isinstance(layout, ReferenceLayout):
        return []
    ways = {
        "masked": f"torch.where(mask > 0.5, {layout.fill:.4g}, image)",
        "picture": "the picture at the image's size",
    }
    reference = ways.get(str(layout.reference), "image")
    return [f"the pipeline {layout.reference_call.format(reference)}"]


def config_difference(denoiser: Any, pipeline: Any) -> str | None:
    """What a pipeline's class looks for in the config of a denoiser that has none; None if it is there.

    `ChromaInpaintPipeline` of diffusers 0.42 asks for `guidance_embeds`, which its transformer does not know.
    """
    if "guidance_embeds" in denoiser.config or "config.guidance_embeds" not in inspect.getsource(pipeline.__call__):
        return None
    return (
        f"{pipeline.__name__} of the installed diffusers stops at a {type(denoiser).__name__}, whose config has no "
        "guidance_embeds: set pipeline.transformer.register_to_config(guidance_embeds=False) before the call"
    )


def clip_skip_difference(conditioning: Conditioning) -> str | None:
    """Which layers of its CLIPs a pipeline must be asked to leave out; None if those that it leaves out itself."""
    if not isinstance(conditioning, TextConditioning) or not conditioning.clip_skip:
        return None
    skip = conditioning.clip_skip
    said = f"trained with clip_skip: {skip}, which no folder holds: call the pipeline with clip_skip={skip}"
    if isinstance(conditioning, StableDiffusionText) and not hasattr(conditioning.encoder.model, "text_model"):
        said += (
            "; the installed diffusers then looks for text_model in a CLIP, which the installed transformers makes "
            "without: before the call, set pipeline.text_encoder.__dict__['text_model'] = pipeline.text_encoder"
        )
    return said


def decode_difference(encoder: InpaintEncoder, pipeline: Any) -> str | None:
    """How a pipeline's class decodes otherwise than the VAE's config says; None if alike.

    `StableDiffusion3InpaintPipeline` of diffusers 0.42 forgets the shift (issue 13611 there). Its source is looked
    into, so that nothing is said of a release that no longer does.
    """
    shift = encoder.vae.module.config.get("shift_factor") if isinstance(encoder.vae, DiffusersVAE) else None
    if not shift or pipeline is None or "shift_factor" in inspect.getsource(pipeline.__call__):
        return None
    return (
        f"{pipeline.__name__} of the installed diffusers decodes without the VAE's shift_factor ({shift}), so its "
        "pictures come out otherwise than in validation and the report, which decode with it: call it with "
        'output_type="latent", and decode latents / scaling_factor + shift_factor with its VAE'
    )


def scaling_difference(encoder: InpaintEncoder, pipeline: Any) -> str | None:
    """How a pipeline's class scales the masked image's latents otherwise than the VAE's config says; None if alike.

    `StableDiffusionXLInpaintPipeline` leaves out `latents_mean` and `latents_std` (Playground 2.5) where it encodes.
    """
    mean = encoder.vae.module.config.get("latents_mean") if isinstance(encoder.vae, DiffusersVAE) else None
    if (
        not mean
        or pipeline is None
        or "latents_mean" in inspect.getsource(getattr(pipeline, "_encode_vae_image", pipeline))
    ):
        return None
    return (
        f"trained with latents scaled by the VAE's latents_mean and latents_std, but {pipeline.__name__} of the "
        "installed diffusers scales those of the masked image by scaling_factor alone"
    )


def dtype_difference(encoder: InpaintEncoder) -> str:
    """In which dtype a pipeline has to be loaded for its VAE to encode as in training; all its parts share one."""
    dtype = encoder.vae.dtype if isinstance(encoder.vae, DiffusersVAE) else torch.float32
    return (
        f"trained with a VAE in {str(dtype).removeprefix('torch.')}: load the pipeline with torch_dtype={dtype}, as in "
        "another dtype its VAE's latents differ by rounding; to serve in bfloat16, train with the VAE's dtype: bfloat16"
    )
