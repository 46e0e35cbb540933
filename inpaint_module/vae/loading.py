"""How a `FrozenVAE` is made: around an autoencoder object, or from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from inpaint_module.embedded import loading_options, local_folder
from inpaint_module.vae.comfy_vae import ComfyVAE
from inpaint_module.vae.diffusers_vae import DiffusersVAE
from inpaint_module.vae.frozen_vae import FrozenVAE, Posterior
from inpaint_module.weightless import config_model, runnable, weightless

__all__ = ["EMBEDDED", "ComfyVAE", "DiffusersVAE", "FrozenVAE", "Posterior", "as_vae", "load_vae"]

EMBEDDED = "embedded:vae"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def as_vae(vae: Any) -> FrozenVAE:
    """Wrap a VAE in a `FrozenVAE`; one that is a `FrozenVAE` already is returned as it is.

    Args:
        vae: a diffusers autoencoder, an object of ComfyUI's duck type, or a `FrozenVAE`.

    Raises:
        ValueError: none of these, or one that `DiffusersVAE` or `ComfyVAE` refuses.
    """
    if isinstance(vae, FrozenVAE):
        return vae
    if isinstance(vae, nn.Module) and hasattr(vae, "encode") and hasattr(vae, "config"):
        return DiffusersVAE(vae)
    if hasattr(vae, "encode") and (hasattr(vae, "downscale_ratio") or hasattr(vae, "spacial_compression_encode")):
        return ComfyVAE(vae)
    raise ValueError(
        "vae must be a diffusers autoencoder, or have encode() and downscale_ratio or spacial_compression_encode() as "
        f"ComfyUI's VAE objects do; got {type(vae).__name__}"
    )


def load_vae(
    path: str = EMBEDDED, subfolder: str | None = None, dtype: str = "float32", compiled: bool = False
) -> FrozenVAE:
    """Load a diffusers autoencoder of any class from a folder or a hub name.

    Args:
        path: local folder, hub name, or "embedded:vae" for the small one that ships with this package.
        subfolder: folder inside `path`; "vae" for a whole pipeline's folder.
        dtype: float32 or bfloat16, kept whatever precision the trainer uses; float16 where the VAE bears it. The
            precision of the file does not matter.
        compiled: compile its encode, which the first batch of each shape waits for; latents move by rounding.

    Raises:
        ValueError: an unknown dtype, or no autoencoder there.
    """
    from diffusers import AutoModel

    if dtype not in _DTYPES:
        raise ValueError(f"vae dtype must be one of {', '.join(_DTYPES)}; got {dtype!r}")
    path = local_folder(path)
    options = loading_options(path, "VAE")
    if weightless():
        return as_vae(runnable(config_model(path, subfolder, _DTYPES[dtype], **options)))
    try:
        # low_cpu_mem_usage needs accelerate, which a VAE does not
        module = AutoModel.from_pretrained(
            path, subfolder=subfolder, torch_dtype=_DTYPES[dtype], low_cpu_mem_usage=False, **options
        )
    except OSError as error:
        raise ValueError(
            f"no diffusers autoencoder at {str(Path(path) / (subfolder or ''))!r}: expected a folder with config.json "
            f"and weights, or a hub name ({error})"
        ) from error
    vae = as_vae(module)
    if compiled:
        module.encode = torch.compile(module.encode)
    return vae
