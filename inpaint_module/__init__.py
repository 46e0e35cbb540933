"""Preprocessing and training for inpainting diffusion models: the public names, one line each in API.md beside this."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "inpaint_module":  # ComfyUI imports a folder of custom_nodes with its path for a name
    sys.modules.setdefault("inpaint_module", sys.modules[__name__])

if TYPE_CHECKING:
    from inpaint_module.base_models import (
        BaseModel,
        FluxFillLayout,
        LoRA,
        ModelParts,
        StableDiffusion3Layout,
        StableDiffusionLayout,
        load_denoiser,
        load_scheduler,
        load_text,
    )
    from inpaint_module.batch import Batch
    from inpaint_module.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from inpaint_module.encoder import InpaintEncoder, InpaintLatents
    from inpaint_module.masks import MaskGenerator, preset
    from inpaint_module.metrics.perceptual import LPIPS
    from inpaint_module.metrics.scores import MaskedPSNR
    from inpaint_module.morphology import dilate, reduce_mask
    from inpaint_module.objectives.loss import LossWeights
    from inpaint_module.pixels import padding_mask_crop
    from inpaint_module.randomness import Stream, key
    from inpaint_module.report.validation_report import ValidationReport
    from inpaint_module.sampling import inpaint_latents
    from inpaint_module.training.averages import EMA
    from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
    from inpaint_module.training.watch import ValidationLoss
    from inpaint_module.vae import load_vae

__all__ = [
    "EMA",
    "LPIPS",
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "BaseModel",
    "Batch",
    "FluxFillLayout",
    "InpaintDiffusion",
    "InpaintEncoder",
    "InpaintLatents",
    "LoRA",
    "LossWeights",
    "MaskGenerator",
    "MaskedPSNR",
    "ModelParts",
    "StableDiffusion3Layout",
    "StableDiffusionLayout",
    "Stream",
    "ValidationLoss",
    "ValidationReport",
    "dilate",
    "inpaint_latents",
    "key",
    "load_denoiser",
    "load_scheduler",
    "load_text",
    "load_vae",
    "padding_mask_crop",
    "preset",
    "reduce_mask",
]
_HOMES = {
    "NODE_CLASS_MAPPINGS": "comfyui",
    "NODE_DISPLAY_NAME_MAPPINGS": "comfyui",
    "BaseModel": "base_models",
    "Batch": "batch",
    "EMA": "training.averages",
    "FluxFillLayout": "base_models",
    "InpaintDiffusion": "training.inpaint_diffusion",
    "InpaintEncoder": "encoder",
    "InpaintLatents": "encoder",
    "LPIPS": "metrics.perceptual",
    "LoRA": "base_models",
    "LossWeights": "objectives",
    "MaskGenerator": "masks",
    "MaskedPSNR": "metrics.scores",
    "ModelParts": "base_models",
    "StableDiffusion3Layout": "base_models",
    "StableDiffusionLayout": "base_models",
    "Stream": "randomness",
    "ValidationLoss": "training.watch",
    "ValidationReport": "report.validation_report",
    "dilate": "morphology",
    "inpaint_latents": "sampling",
    "key": "randomness",
    "load_denoiser": "base_models",
    "load_scheduler": "base_models",
    "load_text": "base_models",
    "load_vae": "vae",
    "padding_mask_crop": "pixels",
    "preset": "masks",
    "reduce_mask": "morphology",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the help of a command does without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"inpaint_module.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
