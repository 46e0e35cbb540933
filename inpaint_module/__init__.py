"""Preprocessing and training for inpainting diffusion models."""

import sys

if __name__ != "inpaint_module":  # ComfyUI imports a folder of custom_nodes with its path for a name
    sys.modules.setdefault("inpaint_module", sys.modules[__name__])

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
