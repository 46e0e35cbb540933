"""Preprocessing and training for inpainting diffusion models."""

from inpaint_module.encoder import InpaintEncoder, InpaintLatents
from inpaint_module.masks import MaskGenerator
from inpaint_module.vae import load_vae

__all__ = ["InpaintEncoder", "InpaintLatents", "MaskGenerator", "load_vae"]
