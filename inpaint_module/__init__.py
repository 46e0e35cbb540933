"""Preprocessing and training for inpainting diffusion models."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "inpaint_module":  # ComfyUI imports a folder of custom_nodes with its path for a name
    sys.modules.setdefault("inpaint_module", sys.modules[__name__])

if TYPE_CHECKING:
    from inpaint_module.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from inpaint_module.encoder import InpaintEncoder, InpaintLatents
    from inpaint_module.masks import MaskGenerator
    from inpaint_module.vae.loading import load_vae

__all__ = [
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "InpaintEncoder",
    "InpaintLatents",
    "MaskGenerator",
    "load_vae",
]
_HOMES = {
    "NODE_CLASS_MAPPINGS": "comfyui",
    "NODE_DISPLAY_NAME_MAPPINGS": "comfyui",
    "InpaintEncoder": "encoder",
    "InpaintLatents": "encoder",
    "MaskGenerator": "masks",
    "load_vae": "vae.loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: the help of a command does without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"inpaint_module.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
