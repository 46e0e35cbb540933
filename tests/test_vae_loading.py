"""The ways to a VAE: `as_vae` on an object, `load_vae` on a folder."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_vaes
import torch
from torch import nn

from inpaint_module.vae.loading import DiffusersVAE, as_vae, load_vae


def test_deepcopy_shares_and_as_vae_keeps() -> None:
    vae = as_vae(tiny_vaes.build("sd"))
    assert copy.deepcopy(vae) is vae
    assert as_vae(vae) is vae


@pytest.mark.parametrize("other", [None, nn.Linear(1, 1), SimpleNamespace(encode=print), "sd"])
def test_other_objects_are_refused(other: Any) -> None:
    with pytest.raises(
        ValueError, match=r"vae must be a diffusers autoencoder, or have encode\(\) and downscale_ratio"
    ):
        as_vae(other)


@pytest.mark.parametrize("name", ["sd", "taesd", "dc", "flux2", "qwen", "hunyuan", "vq", "asymmetric"])
def test_load_vae_from_a_pipelines_folder(name: str, tmp_path: Any) -> None:
    module = tiny_vaes.build(name).half()
    module.save_pretrained(tmp_path / "vae")
    vae = load_vae(str(tmp_path), subfolder="vae")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert isinstance(vae, DiffusersVAE)
    assert vae.dtype == torch.float32
    assert vae.fingerprint() == as_vae(module.float()).fingerprint()
    assert torch.equal(vae.posterior(image).mean, as_vae(module).posterior(image).mean)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_load_vae_dtype(dtype: str, tmp_path: Any) -> None:
    tiny_vaes.build("sd").save_pretrained(tmp_path)
    assert load_vae(str(tmp_path), dtype=dtype).dtype == getattr(torch, dtype)


def test_load_vae_refuses(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="vae dtype must be one of float32, bfloat16, float16; got 'fp32'"):
        load_vae(str(tmp_path), dtype="fp32")
    with pytest.raises(
        ValueError, match=r"no diffusers autoencoder at .*missing/folder': expected a folder with config"
    ):
        load_vae(str(tmp_path / "missing" / "folder"))
    with pytest.raises(ValueError, match="no diffusers autoencoder at "):
        load_vae(str(tmp_path))
    tiny_vaes.build("sd").save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match=r"no diffusers autoencoder at .*/vea'"):
        load_vae(str(tmp_path), subfolder="vea")


def test_load_vae_refuses_a_model_that_is_no_autoencoder(tmp_path: Any) -> None:
    from diffusers import UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    UNet2DModel(block_out_channels=(8,), norm_num_groups=4, add_attention=False, **blocks).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"vae must be a diffusers autoencoder.*got UNet2DModel"):
        load_vae(str(tmp_path))
