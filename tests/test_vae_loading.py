"""The ways to a VAE, `as_vae` on an object and `load_vae` on a folder, and what they refuse."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_vaes
import torch
from tiny_vaes import MEAN_6
from torch import nn
from vaes_by_hand import image_of

from inpaint_module.vae import DiffusersVAE, as_vae, load_vae


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


def test_force_upcast_refuses_float16_and_tells_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"overflows in float16 .*load it in float32 or bfloat16, or set force_upcast"):
        as_vae(tiny_vaes.build("sdxl").half())
    vae = as_vae(tiny_vaes.build("sd").half())  # force_upcast is False
    assert vae.posterior(image_of("sd")).mean.dtype == torch.float32


def test_a_lying_ratio_is_refused() -> None:
    module = tiny_vaes.build("sd")
    module.register_to_config(spatial_compression_ratio=4)
    message = r"AutoencoderKL claims 4 pixels per latent cell and side, but encodes 8 x 8 pixels to .* \(1, 4, 1, 1\)"
    with pytest.raises(ValueError, match=message):
        as_vae(module)
    with pytest.raises(ValueError, match="AutoencoderKLWan claims 8 pixels per latent cell"):
        as_vae(tiny_vaes.wan22(scale_factor_spatial=8))  # what 2**len(temperal_downsample) says


def test_a_ratio_too_small_to_encode_is_refused() -> None:
    module = tiny_vaes.build("sd")
    module.register_to_config(spatial_compression_ratio=1)
    with pytest.raises(ValueError, match="claims 1 pixels per latent cell and side, but cannot encode 2 x 2 pixels"):
        as_vae(module)


def test_a_ratio_that_is_not_told_is_refused() -> None:
    module = tiny_vaes.build("sd")
    module.register_to_config(block_out_channels=None)
    with pytest.raises(ValueError, match="AutoencoderKL has no ratio: expected spatial_compression_ratio"):
        as_vae(module)


def test_statistics_of_another_number_of_channels_are_refused() -> None:
    module = tiny_vaes.build("playground")
    module.register_to_config(latents_mean=MEAN_6)
    with pytest.raises(ValueError, match="gives the mean of 6 latent channels, but it encodes to 4"):
        as_vae(module)


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
        ValueError, match=r"VAE: expected a folder, or a name on the hub.*missing/folder': there is no such folder"
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


def test_compiled_the_latents_are_the_same(tmp_path: Path) -> None:
    """Run by torch alone: Inductor would need a C++ compiler on the machine."""
    tiny_vaes.build("sd").save_pretrained(tmp_path)
    plain, compiled = load_vae(str(tmp_path)), load_vae(str(tmp_path), compiled=True)
    assert isinstance(compiled, DiffusersVAE)
    assert hasattr(compiled.module.encode, "get_compiler_config")
    assert compiled.fingerprint() == plain.fingerprint()
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(compiled.posterior(image_of("sd")).mean, plain.posterior(image_of("sd")).mean)


def test_latents_that_overflow_in_float16_name_the_vae() -> None:
    vae = as_vae(tiny_vaes.build("sd").half())
    with torch.no_grad():
        vae.module.encoder.conv_out.weight.fill_(60000)
    with pytest.raises(ValueError, match=r"AutoencoderKL \(float16\): expected finite latents, got infinite or NaN"):
        vae.posterior(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
