"""Frozen autoencoders of diffusers and ComfyUI behind one interface."""

from inpaint_module.vae.diffusers_vae import DiffusersVAE, as_vae, load_vae
from inpaint_module.vae.frozen_vae import ComfyVAE, FrozenVAE, Posterior

__all__ = ["ComfyVAE", "DiffusersVAE", "FrozenVAE", "Posterior", "as_vae", "load_vae"]
