"""All base models that are known, and which of them a folder or a model's parts belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inpaint_module.base_models.chroma import CHROMA
from inpaint_module.base_models.conditioning import Conditioning
from inpaint_module.base_models.family import Family
from inpaint_module.base_models.flux import FLUX
from inpaint_module.base_models.layout import Layout
from inpaint_module.base_models.qwen_image import QWEN_IMAGE, QWEN_IMAGE_EDIT
from inpaint_module.base_models.stable_diffusion import STABLE_DIFFUSION
from inpaint_module.base_models.stable_diffusion_3 import STABLE_DIFFUSION_3
from inpaint_module.base_models.stable_diffusion_xl import STABLE_DIFFUSION_XL
from inpaint_module.base_models.z_image import Z_IMAGE

FAMILIES = (
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    STABLE_DIFFUSION_3,
    FLUX,
    QWEN_IMAGE,
    QWEN_IMAGE_EDIT,
    Z_IMAGE,
    CHROMA,
)

_NO_INPAINTING = "of which the installed diffusers has no pipeline that inpaints"
SIBLINGS = {  # that are told otherwise than their namesakes
    "Flux2": "which diffusers serves by Flux2KleinInpaintPipeline alone, as an edit model; it is not trained here",
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
    """The name of the diffusers class that serves a denoiser that is told and fed so; None without text.

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
