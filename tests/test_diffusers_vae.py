"""The adapter over every family of VAEs, against the diffusers class called by hand as its own pipelines call it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import tiny_vaes
import torch
from tiny_vaes import FAMILIES, MEAN_4, MEAN_6, STD_4, STD_6, one_thread  # noqa: F401
from torch import Tensor, nn

from inpaint_module.encoder import InpaintEncoder
from inpaint_module.vae.loading import as_vae

VIDEO = {"qwen", "wan21", "wan22"}
families = pytest.mark.parametrize("name", FAMILIES)


def pixels(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Random float32 (B, 3, H, W) in 0..1."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def image_of(name: str, batch: int = 1) -> Tensor:
    """A small image that is no square: 2 x 3 latent cells."""
    return pixels(batch, 2 * FAMILIES[name].ratio, 3 * FAMILIES[name].ratio)


def latents_of(name: str, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, FAMILIES[name].channels, 2, 3, generator=generator)


def assert_same(a: Tensor, b: Tensor) -> None:
    """Equal but for the order of float32 sums, which the memory format changes."""
    torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)


def patchify(z: Tensor) -> Tensor:
    """As Flux2Pipeline._patchify_latents."""
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)


def unpatchify(z: Tensor) -> Tensor:
    """As Flux2Pipeline._unpatchify_latents."""
    b, c, h, w = z.shape
    return z.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, h * 2, w * 2)


def encode_by_hand(module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and std in the class's own words, one image per call."""
    means, stds = [], []
    for image in (images * 2 - 1).split(1):
        out = module.encode(image.unsqueeze(2) if isinstance(module, VIDEO_CLASSES) else image)
        parts = (out.latent_dist.mean, out.latent_dist.std) if "latent_dist" in out else (next(iter(out.values())),)
        parts = tuple(part.squeeze(2) if part.ndim == 5 else part for part in parts)
        parts = tuple(patchify(part) if hasattr(module, "bn") else part for part in parts)
        means.append(parts[0])
        stds += parts[1:]
    return torch.cat(means), torch.cat(stds) if stds else None


VIDEO_CLASSES = tuple({type(tiny_vaes.build(name)) for name in VIDEO})


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


@families
def test_always_eval_whatever_train_says(name: str) -> None:
    module = tiny_vaes.build(name)
    vae, images = as_vae(module.train()), image_of(name)
    assert not any(part.training for part in module.modules())
    expected = vae.posterior(images).mean
    module.train()
    assert torch.equal(vae.posterior(images).mean, expected)
    assert not module.training
    module.decoder.train()  # the root still says eval
    vae.decode(latents_of(name))
    assert not any(part.training for part in module.modules())


def test_eval_matters_where_there_is_dropout() -> None:
    module = tiny_vaes.build("sd")
    module.encoder.conv_in = nn.Sequential(module.encoder.conv_in, nn.Dropout(0.5))
    vae = as_vae(module)
    expected = vae.posterior(image_of("sd")).mean
    module.encoder.conv_in.train()
    assert torch.equal(vae.posterior(image_of("sd")).mean, expected)


@families
def test_no_gradients_but_through_decode_to_the_latents(name: str) -> None:
    module = tiny_vaes.build(name)
    vae = as_vae(module)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    mean = vae.posterior(image_of(name).requires_grad_()).mean
    assert not mean.requires_grad
    assert not mean.is_inference()
    z = latents_of(name).requires_grad_()
    assert vae.decode(z).requires_grad


@families
def test_autocast_changes_nothing(name: str) -> None:
    vae, images, z = as_vae(tiny_vaes.build(name)), image_of(name), latents_of(name)
    expected, decoded = vae.posterior(images), vae.decode(z)
    with torch.autocast("cpu", torch.bfloat16):
        got = vae.posterior(images)
        assert torch.equal(vae.decode(z), decoded)
    assert torch.equal(got.mean, expected.mean)
    assert expected.std is None or torch.equal(got.std, expected.std)


@families
def test_bfloat16_weights_give_float32_latents_of_their_own_precision(name: str) -> None:
    vae = as_vae(tiny_vaes.build(name).to(torch.bfloat16))
    images, exact = image_of(name), as_vae(tiny_vaes.build(name)).posterior(image_of(name)).mean
    mean = vae.posterior(images).mean
    assert mean.dtype == torch.float32
    assert torch.equal(mean, mean.bfloat16().float())
    assert 0 < (mean - exact).abs().max() < 0.1 * exact.abs().max()
    assert vae.normalize(mean).dtype == torch.float32
    if name != "vq":  # its quantizer calls torch.cdist, which has no bfloat16
        assert vae.decode(mean).dtype == torch.float32


def test_flux2_statistics_are_computed_in_float32_from_bfloat16_buffers() -> None:
    module = tiny_vaes.build("flux2").to(torch.bfloat16)
    z = latents_of("flux2")
    std = (module.bn.running_var.float() + 1e-4).sqrt().view(-1, 1, 1)
    expected = (z - module.bn.running_mean.float().view(-1, 1, 1)) / std
    torch.testing.assert_close(as_vae(module).normalize(z), expected)


@families
def test_fingerprint_is_of_the_weights(name: str) -> None:
    fingerprint = as_vae(tiny_vaes.build(name)).fingerprint()
    assert len(fingerprint) == 32
    assert as_vae(tiny_vaes.build(name)).fingerprint() == fingerprint
    assert as_vae(tiny_vaes.build(name, seed=1)).fingerprint() != fingerprint
    assert as_vae(tiny_vaes.build(name).bfloat16()).fingerprint() != fingerprint


def test_fingerprint_does_not_depend_on_memory_format_nor_gradients() -> None:
    vae = as_vae(tiny_vaes.build("sd"))
    assert vae.module.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    fingerprint = vae.fingerprint()
    plain = as_vae(tiny_vaes.build("sd"))
    plain.module.to(memory_format=torch.contiguous_format).requires_grad_()
    assert plain.fingerprint() == fingerprint


def test_fingerprint_tells_flux2_batch_statistics() -> None:
    other = tiny_vaes.build("flux2")
    other.bn.running_var.mul_(2)
    assert as_vae(other).fingerprint() != as_vae(tiny_vaes.build("flux2")).fingerprint()


def test_to_keeps_the_dtype() -> None:
    vae = as_vae(tiny_vaes.build("playground").bfloat16())
    vae.to(torch.device("cpu"))
    assert (vae.dtype, vae.device) == (torch.bfloat16, torch.device("cpu"))


@pytest.mark.cuda
@families
def test_to_moves_weights_and_statistics(name: str) -> None:
    vae, z = as_vae(tiny_vaes.build(name)), latents_of(name)
    expected, fingerprint = vae.posterior(image_of(name)).mean, vae.fingerprint()
    vae.to(torch.device("cuda"))
    mean = vae.posterior(image_of(name).cuda()).mean
    assert mean.device.type == "cuda"
    torch.testing.assert_close(mean.cpu(), expected, atol=1e-2, rtol=1e-2)
    assert vae.normalize(z.cuda()).device.type == "cuda"
    assert vae.decode(z.cuda()).device.type == "cuda"
    assert as_vae(vae.module).fingerprint() == fingerprint


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


def test_config_values_may_be_none() -> None:
    module = tiny_vaes.build("sd")
    module.register_to_config(
        spatial_compression_ratio=None, scale_factor_spatial=None, scaling_factor=None, force_upcast=None
    )
    vae, z = as_vae(module), latents_of("sd")
    assert vae.ratio == 8
    assert torch.equal(vae.normalize(z), z)


def test_a_ratio_that_is_not_told_is_refused() -> None:
    module = tiny_vaes.build("sd")
    module.register_to_config(block_out_channels=None)
    with pytest.raises(ValueError, match="AutoencoderKL does not tell its ratio: expected spatial_compression_ratio"):
        as_vae(module)


def test_statistics_of_another_number_of_channels_are_refused() -> None:
    module = tiny_vaes.build("playground")
    module.register_to_config(latents_mean=MEAN_6)
    with pytest.raises(ValueError, match="gives the mean of 6 latent channels, but it encodes to 4"):
        as_vae(module)


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


@pytest.mark.parametrize("name", ["sd", "taesd", "qwen"])
def test_encoder_compiles_into_one_graph(name: str) -> None:
    encoder = InpaintEncoder(tiny_vaes.build(name))
    images, mask = image_of(name, batch=2), torch.zeros(2, 1, 16, 24, dtype=torch.bool)
    mask[..., 4:9, 5:12] = True
    expected = encoder(images, mask, target=True)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    encoder.vae.module.train()
    for got, want in zip(compiled(images, mask, target=True), expected, strict=True):
        assert torch.equal(got, want)
