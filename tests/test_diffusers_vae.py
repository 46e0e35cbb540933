"""The adapter over every family of VAEs, against the diffusers class called by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import tiny_vaes
import torch
from tiny_vaes import FAMILIES, MEAN_4, MEAN_6, STD_4, STD_6
from torch import Tensor, nn
from vaes_by_hand import (
    VIDEO,
    assert_same,
    encode_by_hand,
    families,
    image_of,
    latents_of,
    patchify,
    pixels,
    unpatchify,
)

from inpaint_module.vae import as_vae


def column(values: list[float]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def flux2_normalize(z: Tensor) -> Tensor:
    bn = tiny_vaes.build("flux2").bn
    return (z - bn.running_mean.view(-1, 1, 1)) / torch.sqrt(bn.running_var.view(-1, 1, 1) + 1e-4)


NORMALIZE: dict[str, Callable[[Tensor], Tensor]] = {
    "sd": lambda z: z * 0.18215,
    "sdxl": lambda z: z * 0.13025,
    "sd3": lambda z: (z - 0.0609) * 1.5305,
    "flux": lambda z: (z - 0.1159) * 0.3611,
    "playground": lambda z: (z - column(MEAN_4)) * 0.5 / column(STD_4),
    "taesd": lambda z: z,
    "dc": lambda z: z * 0.41407,
    "flux2": flux2_normalize,
    "qwen": lambda z: (z - column(MEAN_4)) * (1.0 / column(STD_4)),
    "wan21": lambda z: (z - column(MEAN_4)) * (1.0 / column(STD_4)),
    "wan22": lambda z: (z - column(MEAN_6)) * (1.0 / column(STD_6)),
    "hunyuan": lambda z: z * 0.75289,
    "vq": lambda z: z * 0.7,
    "movq": lambda z: z,
    "asymmetric": lambda z: z * 0.18215,
}


@families
def test_ratio_channels_and_posterior(name: str) -> None:
    family, vae = FAMILIES[name], as_vae(tiny_vaes.build(name))
    assert (vae.ratio, vae.channels) == (family.ratio, family.channels)
    mean, std = vae.posterior(image_of(name, batch=2))
    assert mean.shape == (2, family.channels, 2, 3)
    assert mean.dtype == torch.float32
    assert (std is not None) == family.gaussian
    if std is not None:
        assert std.shape == mean.shape
        assert std.dtype == torch.float32


@families
@torch.no_grad()
def test_latents_equal_the_class_called_by_hand(name: str) -> None:
    mean, std = as_vae(tiny_vaes.build(name)).posterior(image_of(name, batch=2))
    expected_mean, expected_std = encode_by_hand(tiny_vaes.build(name), image_of(name, batch=2))
    assert_same(mean, expected_mean)
    if std is not None and expected_std is not None:
        assert_same(std, expected_std)


@families
def test_images_are_not_frames(name: str) -> None:
    vae, images = as_vae(tiny_vaes.build(name)), image_of(name, batch=3)
    together, alone = vae.posterior(images), [vae.posterior(image) for image in images.split(1)]
    assert_same(together.mean, torch.cat([one.mean for one in alone]))
    latents = latents_of(name, batch=3)
    assert_same(vae.decode(latents), torch.cat([vae.decode(one) for one in latents.split(1)]))


@families
def test_normalize_is_the_pipelines_formula_and_denormalize_its_inverse(name: str) -> None:
    vae, z = as_vae(tiny_vaes.build(name)), latents_of(name, batch=2)
    torch.testing.assert_close(vae.normalize(z), NORMALIZE[name](z), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(vae.denormalize(vae.normalize(z)), z, atol=1e-6, rtol=1e-6)


@families
@torch.no_grad()
def test_decode_equals_the_class_called_by_hand(name: str) -> None:
    family, vae, z = FAMILIES[name], as_vae(tiny_vaes.build(name)), latents_of(name, batch=2)
    images = vae.decode(z)
    assert images.shape == (2, 3, 2 * family.ratio, 3 * family.ratio)
    assert images.dtype == torch.float32
    module, options = tiny_vaes.build(name), {"force_not_quantize": True} if name == "movq" else {}
    z = unpatchify(z) if name == "flux2" else z
    expected = module.decode(z.unsqueeze(2) if name in VIDEO else z, **options).sample
    assert_same(images, (expected.squeeze(2) if name in VIDEO else expected) / 2 + 0.5)


PIPELINES = {
    "sd": "StableDiffusionInpaintPipeline",
    "sdxl": "StableDiffusionXLInpaintPipeline",
    "sd3": "StableDiffusion3InpaintPipeline",
    "flux": "FluxInpaintPipeline",
    "taesd": "StableDiffusionInpaintPipeline",
    "asymmetric": "StableDiffusionInpaintPipeline",
    "flux2": "Flux2Pipeline",
    "qwen": "QwenImageInpaintPipeline",
}


@pytest.mark.parametrize("name", PIPELINES)
@torch.no_grad()
def test_model_space_latents_equal_the_pipelines_own(name: str) -> None:
    pytest.importorskip("transformers", reason="diffusers defines its pipelines only beside transformers")
    import diffusers

    pipeline = getattr(diffusers, PIPELINES[name])
    stand_in = SimpleNamespace(vae=tiny_vaes.build(name), _patchify_latents=patchify)
    images = image_of(name, batch=1) * 2 - 1
    images = images.unsqueeze(2) if name in VIDEO else images
    expected = pipeline._encode_vae_image(stand_in, images, generator=torch.Generator().manual_seed(3))
    expected = expected.squeeze(2) if name in VIDEO else expected

    vae = as_vae(tiny_vaes.build(name))
    latents, std = vae.posterior(image_of(name, batch=1))
    if std is not None and name != "flux2":  # Flux.2 takes the mode
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
        latents = latents + std * noise
    assert_same(vae.normalize(latents), expected)


def small_tiles(module: nn.Module) -> None:
    """Tiles of 64 pixels that overlap, in each class's own words."""
    for name in vars(module):
        if name.startswith("tile_sample_min"):
            setattr(module, name, 64)
        if name.startswith("tile_sample_stride"):
            setattr(module, name, 32)
        if name.startswith("tile_latent_min"):
            setattr(module, name, 64 // 8)
    if hasattr(module, "tile_overlap_factor"):
        module.tile_overlap_factor = 0.25  # AutoencoderTiny's own eighth of so small a tile divides 0 by 0
    module.enable_tiling()


@pytest.mark.parametrize("name", ["sd", "taesd", "flux2", "qwen", "wan21", "wan22", "dc"])
@torch.no_grad()
def test_tiling_passes_through(name: str) -> None:
    images, module = pixels(1, 96, 128), tiny_vaes.build(name)
    vae = as_vae(module)
    whole = vae.posterior(images).mean
    small_tiles(module)
    tiled = vae.posterior(images).mean
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().max() > 1e-4
    by_hand = tiny_vaes.build(name)
    small_tiles(by_hand)
    assert_same(tiled, encode_by_hand(by_hand, images)[0])
    assert as_vae(by_hand).ratio == FAMILIES[name].ratio  # tiling before wrapping


@pytest.mark.parametrize("name", ["sd", "taesd", "flux2", "qwen", "wan21", "wan22", "dc", "hunyuan"])
def test_slicing_passes_through(name: str) -> None:
    module, images = tiny_vaes.build(name), image_of(name, batch=3)
    vae = as_vae(module)
    expected = vae.posterior(images).mean
    batches: list[int] = []
    module.encoder.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    module.enable_slicing()
    assert_same(vae.posterior(images).mean, expected)
    assert set(batches) == {1}


def test_config_values_may_be_none() -> None:
    module = tiny_vaes.build("sd")
    module.register_to_config(
        spatial_compression_ratio=None, scale_factor_spatial=None, scaling_factor=None, force_upcast=None
    )
    vae, z = as_vae(module), latents_of("sd")
    assert vae.ratio == 8
    assert torch.equal(vae.normalize(z), z)


def test_a_posterior_with_a_mode_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models.autoencoders.vae import IdentityDistribution

    module = tiny_vaes.build("taesd")
    encode = module.encode
    monkeypatch.setattr(
        module, "encode", lambda x, return_dict: (IdentityDistribution(encode(x, return_dict=False)[0]),)
    )
    mean, std = as_vae(module).posterior(image_of("taesd"))
    assert std is None
    assert_same(mean, as_vae(tiny_vaes.build("taesd")).posterior(image_of("taesd")).mean)
