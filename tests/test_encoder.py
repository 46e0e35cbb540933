"""The encoder against the node's own numbers, and what a training run needs of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file
from tiny_models import tiny_vae
from tiny_vaes import tiny
from torch import Tensor, nn

from inpaint_module import InpaintEncoder
from inpaint_module.fills import smooth_fill
from inpaint_module.randomness import Stream, key

GOLDEN = load_file(Path(__file__).parent / "golden" / "vae_encode_for_inpaint.safetensors")
CASES = sorted({name[:3] for name in GOLDEN if name[:3].isdigit()})


@pytest.fixture(scope="module")
def golden_vae() -> AutoencoderKL:
    vae = tiny_vae()
    vae.load_state_dict({name[4:]: value for name, value in GOLDEN.items() if name.startswith("vae.")})
    return vae


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return tiny_vae()


def image(batch: int = 2, height: int = 32, width: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def box(*lead: int, height: int = 32, width: int = 40) -> Tensor:
    mask = torch.zeros(*lead, height, width)
    mask[..., 8:20, 10:30] = 1
    return mask


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["uint8", "float"])
def test_equals_the_node(golden_vae: AutoencoderKL, case: str, form: str) -> None:
    pixels = GOLDEN[f"{case}.pixels"].movedim(-1, 1)
    encoder = InpaintEncoder(golden_vae, int(GOLDEN[f"{case}.grow"]))
    for target in (False, True):
        latents = encoder(pixels if form == "uint8" else pixels.float() / 255, GOLDEN[f"{case}.mask"], target=target)
        assert latents.noise_mask.shape == GOLDEN[f"{case}.noise_mask"].shape
        assert torch.equal(latents.noise_mask, GOLDEN[f"{case}.noise_mask"].float())
        torch.testing.assert_close(latents.samples, GOLDEN[f"{case}.samples"], rtol=0, atol=1e-5)
        assert (latents.target is not None) == target


def test_there_are_all_the_golden_cases() -> None:
    assert len(CASES) == 28


def test_target_is_the_whole_image(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae)
    latents = encoder(image(), box(2), target=True)
    torch.testing.assert_close(latents.target, encoder(image(), torch.zeros(32, 40)).samples, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lead", [(), (1,), (2,), (2, 1), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_mask_shapes_and_dtypes(vae: AutoencoderKL, lead: tuple[int, ...], dtype: torch.dtype) -> None:
    encoder = InpaintEncoder(vae)
    expected = encoder(image(), box(2, 1))
    latents = encoder(image(), box(*lead).to(dtype))
    assert torch.equal(latents.samples, expected.samples)
    assert torch.equal(latents.noise_mask.expand(2, -1, -1, -1), expected.noise_mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_pixel_dtypes(vae: AutoencoderKL, dtype: torch.dtype) -> None:
    pixels = (image().float() / 255).to(dtype)
    encoder = InpaintEncoder(vae)
    assert torch.equal(encoder(pixels, box(2)).samples, encoder(pixels.float(), box(2)).samples)
    assert encoder(pixels, box(2)).samples.dtype == torch.float32


def test_both_batches_broadcast(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae)
    masks = torch.stack([box(), torch.zeros(32, 40), box().flip(0)])
    latents = encoder(image(1), masks, target=True)
    assert latents.samples.shape == latents.target.shape == (3, 4, 4, 5)
    for index in range(3):
        torch.testing.assert_close(latents.samples[[index]], encoder(image(1), masks[index]).samples, rtol=0, atol=1e-5)


def test_alpha_is_dropped(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae)
    rgba = torch.cat([image(), torch.randint(0, 256, (2, 1, 32, 40), dtype=torch.uint8)], dim=1)
    assert torch.equal(encoder(rgba, box(2)).samples, encoder(image(), box(2)).samples)


def test_hidden_pixels_cannot_leak(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(2, 1, 32, 40, generator=generator) < 0.4
        other = torch.where(mask, torch.randint(0, 256, (2, 3, 32, 40), generator=generator), image()).byte()
        assert torch.equal(encoder(image(), mask).samples, encoder(other, mask).samples)


def test_the_threshold_is_over_a_half(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae, 0)
    assert encoder(image(), torch.full((32, 40), 0.5)).noise_mask.sum() == 0
    assert encoder(image(), torch.full((32, 40), 0.5001)).noise_mask.min() == 1


def test_growth_by_radius_and_by_latent_cells(vae: AutoencoderKL) -> None:
    point = torch.zeros(64, 64)
    point[30, 30] = 1
    pixels = image(1, 64, 64)
    for options, side in (({"radius": 3}, 7), ({"cells": 1}, 17), ({"radius": 0}, 1)):
        grown = InpaintEncoder(vae, **options)(pixels, point).noise_mask[0, 0].nonzero()
        assert (grown.max(0).values - grown.min(0).values + 1).tolist() == [side, side]
        assert (grown.double().mean(0) == 30).all()


def test_kernel_shapes(vae: AutoencoderKL) -> None:
    point = torch.zeros(32, 40)
    point[16, 16] = 1
    custom = torch.tensor([[0, 1, 0], [0, 1, 1]])
    for kernel, pixels in (("square", 25), ("disk", 21), ("diamond", 13), (custom, 3)):
        assert InpaintEncoder(vae, 5, kernel=kernel)(image(1), point).noise_mask.sum() == pixels


def test_the_dilation_uses_the_kernel_buffer(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae, 1)
    assert dict(encoder.named_buffers()).keys() == {"kernel"}
    assert "kernel" not in encoder.state_dict()
    point = torch.zeros(32, 40)
    point[16, 16] = 1
    assert encoder(image(1), point).noise_mask.sum() == 1
    encoder.kernel = torch.ones(3, 3, dtype=torch.bool)
    assert encoder(image(1), point).noise_mask.sum() == 9
    encoder.kernel[0] = False
    assert encoder(image(1), point).noise_mask.sum() == 6


def test_fill(vae: AutoencoderKL) -> None:
    black = image().float() / 255
    black[..., 8:20, 10:30] = 0
    encoder = InpaintEncoder(vae, fill=0.0)
    assert torch.equal(encoder(image(), box(2)).samples, encoder(black, torch.zeros(32, 40)).samples)


def test_a_smooth_fill_is_that_of_the_hole_before_it_grows(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae, fill="smooth")
    filled = smooth_fill(image().float() / 255, box(2)[:, None])
    assert torch.equal(encoder(image(), box(2)).samples, encoder(filled, torch.zeros(32, 40)).samples)
    other = image() + 9 * box(2)[:, None].to(torch.uint8)
    assert torch.equal(encoder(other, box(2)).samples, encoder(image(), box(2)).samples)
    assert encoder(image(1), box(2)).samples.shape[0] == 2
    with pytest.raises(ValueError, match=r"0..1 \(pixel space\), or smooth; got 'soft'"):
        InpaintEncoder(vae, fill="soft")


def test_normalize_scales_samples_and_target() -> None:
    vae = tiny_vae(scaling_factor=0.5, shift_factor=0.25)
    raw, scaled = (InpaintEncoder(vae, normalize=flag)(image(), box(2), target=True) for flag in (False, True))
    torch.testing.assert_close(scaled.samples, (raw.samples - 0.25) * 0.5)
    torch.testing.assert_close(scaled.target, (raw.target - 0.25) * 0.5)


def test_decode_inverts_normalize() -> None:
    vae = tiny_vae(scaling_factor=0.5, shift_factor=0.25)
    raw, scaled = (InpaintEncoder(vae, normalize=flag) for flag in (False, True))
    images = [encoder.decode(encoder(image(), box(2)).samples) for encoder in (raw, scaled)]
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=1e-5)
    assert images[0].shape == (2, 3, 32, 40)


def test_max_batch_changes_nothing(vae: AutoencoderKL) -> None:
    whole = InpaintEncoder(vae)(image(3), box(3), target=True)
    parts = InpaintEncoder(vae, max_batch=2)(image(3), box(3), target=True)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_peak_is_that_of_one_batch(vae: AutoencoderKL) -> None:
    """As two calls of the VAE by hand have it: the pass over both at once was twice the memory."""
    encoder = InpaintEncoder(vae)
    with mock.patch.object(encoder.vae.module, "encode", wraps=vae.encode) as encode:  # type: ignore[attr-defined]
        latents = encoder(image(3), box(3), target=True)
    assert [len(call.args[0]) for call in encode.call_args_list] == [3, 3]
    assert torch.equal(latents.samples, encoder(image(3), box(3)).samples), "with a target or without"


def test_sampled_posterior_is_a_function_of_the_key(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae, posterior="sample")
    keys = key(0, torch.arange(3), Stream.POSTERIOR)
    whole = encoder(image(3), box(3), target=True, generator=keys)
    for index in range(3):
        one = encoder(image(3)[[index]], box(1), target=True, generator=keys[[index]])
        torch.testing.assert_close(one.samples, whole.samples[[index]], rtol=0, atol=1e-5)
        torch.testing.assert_close(one.target, whole.target[[index]], rtol=0, atol=1e-5)
    mode = InpaintEncoder(vae)(image(3), box(3), target=True)
    noise = [(sampled - mean) for sampled, mean in zip(whole[::2], mode[::2], strict=True)]
    assert noise[0].std() > 0
    assert abs(torch.corrcoef(torch.stack([part.flatten() for part in noise]))[0, 1]) < 0.2


def test_sampled_posterior_from_a_torch_generator(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae, posterior="sample")
    first, again = (encoder(image(), box(2), generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first.samples, again.samples)


def test_autocast_around_the_call_changes_nothing(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae)
    plain = encoder(image(), box(2), target=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = encoder(image(), box(2), target=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_the_vae_is_no_part_of_the_module_tree(vae: AutoencoderKL) -> None:
    holder = torch.nn.ModuleDict({"encoder": InpaintEncoder(vae)})
    assert list(holder.parameters()) == []
    assert list(holder.state_dict()) == ["encoder._extra_state"]
    holder.train().to(torch.float64)
    encoder = holder["encoder"]
    assert not vae.training
    assert encoder.vae.dtype == torch.float32
    assert not encoder(image(), box(2)).samples.requires_grad
    assert all(not parameter.requires_grad for parameter in vae.parameters())


def test_deepcopy_shares_the_vae(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae)
    twin = copy.deepcopy(encoder)
    assert twin.vae is encoder.vae
    assert torch.equal(twin(image(), box(2)).noise_mask, encoder(image(), box(2)).noise_mask)


def test_another_vae_is_refused_on_resume(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae)
    encoder.load_state_dict(encoder.state_dict())
    with pytest.raises(ValueError, match="trained with a VAE whose weights have sha256"):
        InpaintEncoder(tiny_vae(seed=1)).load_state_dict(encoder.state_dict())


@pytest.mark.parametrize(
    ("pixels", "mask", "message"),
    [
        (torch.zeros(3, 32, 32), torch.zeros(32, 32), r"pixels must be \(B, 3 or 4, H, W\), got \(3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), torch.zeros(32, 32), r"pixels must be \(B, 3 or 4, H, W\)"),
        (torch.zeros(1, 3, 7, 32), torch.zeros(32, 32), "smaller than one latent cell of this VAE, 8 x 8"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), torch.zeros(32, 32), "uint8, or float in 0..1; got torch.int64"),
        (torch.full((1, 3, 32, 32), -0.5), torch.zeros(32, 32), r"pixels must lie in 0\.\.1 without NaN, got -0.5"),
        (
            torch.full((1, 3, 32, 32), 200.0),
            torch.zeros(32, 32),
            r"got 200\.\.200; float pixels in -1\.\.1 or 0\.\.255",
        ),
        (torch.full((1, 3, 32, 32), torch.nan), torch.zeros(32, 32), "pixels must lie in 0..1 without NaN"),
        (torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 1, 32, 32), r"mask must be \(H, W\), \(B, H, W\)"),
        (torch.zeros(1, 3, 32, 32).to_sparse(), torch.zeros(32, 32), r"pixels must be dense, got a torch.sparse_coo"),
        (torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32), r"mask must be \(H, W\), \(B, H, W\)"),
        (torch.zeros(1, 3, 32, 32), torch.full((32, 32), 255, dtype=torch.uint8), "a mask in 0..255 must be divided"),
        (torch.zeros(1, 3, 32, 32), torch.full((32, 32), torch.nan), "mask must lie in 0..1 without NaN"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(3, 32, 32), "the same batch, or one of them 1; got 2 and 3"),
    ],
)
def test_bad_input_is_refused(vae: AutoencoderKL, pixels: Tensor, mask: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InpaintEncoder(vae)(pixels, mask)


@pytest.mark.parametrize(
    ("pixels", "mask", "message"),
    [
        (
            torch.zeros(0, 3, 32, 32),
            torch.zeros(0, 1, 32, 32),
            r"at least one image, got an empty batch \(0, 3, 32, 32\)",
        ),
        (torch.zeros(0, 3, 32, 32, dtype=torch.uint8), torch.zeros(32, 32), "pixels must hold at least one image"),
        (torch.zeros(1, 3, 32, 32), torch.zeros(0, 32, 32), r"at least one mask .* got \(0, 1, 32, 32\)"),
        (
            torch.zeros(1, 3, 32, 32),
            torch.zeros(0, 32),
            r"at least one mask of at least one pixel, got \(1, 1, 0, 32\)",
        ),
        (
            np.zeros((1, 3, 32, 32)),
            torch.zeros(32, 32),
            r"pixels must be a torch\.Tensor \(B, 3 or 4, H, W\), got ndarray",
        ),
        (torch.zeros(1, 3, 32, 32), np.zeros((32, 32)), r"mask must be a torch\.Tensor \(H, W\), .* torch\.from_numpy"),
        (Image.new("RGB", (32, 32)), torch.zeros(32, 32), "got Image; torchvision.*pil_to_tensor makes one of a PIL"),
        (torch.zeros(1, 3, 32, 32), Image.new("L", (32, 32)), "mask must be a torch.Tensor .* got Image"),
        ([torch.zeros(3, 32, 32)], torch.zeros(32, 32), "pixels must be a torch.Tensor .* got list"),
        (torch.zeros(1, 3, 32, 32), None, "mask must be a torch.Tensor .* got NoneType"),
        (torch.zeros(1, 3, 32, 32, device="meta"), torch.zeros(32, 32), "pixels must hold values, .* meta device"),
        (torch.zeros(1, 3, 32, 32), torch.zeros(32, 32, device="meta"), "mask must hold values, .* meta device"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"max_batch": 1}, {"sizing": "diffusers"}])
def test_what_holds_no_images_is_refused(
    vae: AutoencoderKL, pixels: Any, mask: Any, message: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        InpaintEncoder(vae, **options)(pixels, mask)


@pytest.mark.parametrize("sizing", ["comfyui", "diffusers"])
@pytest.mark.parametrize("size", [(32, 48), (20, 30)])
def test_a_mask_that_asks_for_a_gradient_is_a_mask(vae: AutoencoderKL, sizing: str, size: tuple[int, int]) -> None:
    encoder, image = InpaintEncoder(vae, sizing=sizing), torch.rand(2, 3, 32, 48)
    mask = torch.rand(2, 1, *size, requires_grad=True)
    found, expected = (encoder(image, each, target=True) for each in (mask, mask.detach()))
    for ours, plain in zip(found, expected, strict=True):
        assert ours is not None
        assert torch.equal(ours, plain)
        assert not ours.requires_grad


@pytest.mark.parametrize(
    "options", [{}, {"kernel": "disk", "radius": 3}, {"normalize": True}, {"kernel": torch.eye(3)}]
)
def test_an_encoder_made_on_the_meta_device_works(vae: AutoencoderKL, options: dict[str, Any]) -> None:
    image, mask = torch.rand(1, 3, 32, 32), torch.zeros(32, 32)
    mask[12:20, 12:20] = 1
    plain = InpaintEncoder(vae, **options)
    with torch.device("meta"):
        encoder = InpaintEncoder(vae, **options)
    for _ in range(2):
        assert torch.equal(encoder.kernel, plain.kernel)
        assert all(torch.equal(*pair) for pair in zip(encoder(image, mask)[:2], plain(image, mask)[:2], strict=True))
        nn.Sequential(encoder).to_empty(device="cpu")  # leaves parameters and buffers without values


def test_the_kernel_comes_back_from_the_meta_device(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae)
    encoder.kernel = torch.eye(5).bool()
    encoder.to("meta")
    assert encoder.kernel.is_meta
    encoder.to_empty(device="cpu")
    assert torch.equal(encoder.kernel, torch.eye(5).bool())
    encoder.kernel[0, 4] = True  # and is what the dilation uses
    mask = torch.zeros(32, 32)
    mask[16, 16] = 1
    assert encoder(torch.rand(1, 3, 32, 32), mask).noise_mask.sum() == 6


def test_what_has_no_values_is_refused(vae: AutoencoderKL) -> None:
    with pytest.raises(ValueError, match="kernel must hold values, got a tensor on the meta device"):
        InpaintEncoder(vae, kernel=torch.ones(3, 3, device="meta"))
    with torch.device("meta"):
        empty = tiny_vae()
    with pytest.raises(ValueError, match="AutoencoderKL holds no weights, it is on the meta device: load it first"):
        InpaintEncoder(empty)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill": 1.5}, r"fill must be a number in 0\.\.1"),
        ({"posterior": "mean"}, "posterior must be 'mode' or 'sample'"),
        ({"fill": "grey"}, "fill must be a number in 0..1 .*; got 'grey'"),
        ({"max_batch": 0}, "max_batch must be a whole number, at least 1, or None; got 0"),
        ({"max_batch": 1.5}, "max_batch must be a whole number, .* got 1.5"),
        ({"kernel": torch.full((3, 3), torch.nan)}, "kernel must hold finite values"),
        ({"kernel": "star"}, "kernel must be a tensor or one of square, disk, diamond"),
        ({"radius": 1, "cells": 1}, "not both"),
        ({"radius": -1}, "must not be negative, got -1"),
        ({"grow_mask_by": -1}, r"size must be an int in 0\.\.1024"),
    ],
)
def test_bad_options_are_refused(vae: AutoencoderKL, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InpaintEncoder(vae, **options)  # type: ignore[arg-type]


def test_bad_generators_are_refused(vae: AutoencoderKL) -> None:
    encoder = InpaintEncoder(vae, posterior="sample")
    with pytest.raises(ValueError, match="posterior='sample' needs a generator"):
        encoder(image(), box(2))
    with pytest.raises(ValueError, match=r"generator keys must be int64 \(2,\)"):
        encoder(image(), box(2), generator=torch.zeros(3, dtype=torch.int64))
    plain = InpaintEncoder(vae)  # the mode draws nothing, but a generator that is none is somebody's mistake
    for wrong in (3, "cpu", np.random.default_rng(0)):
        with pytest.raises(ValueError, match=r"generator: expected int64 keys \(2,\), a torch.Generator or None, got"):
            plain(image(), box(2), generator=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"generator keys must be int64 \(2,\), got torch.float32"):
        plain(image(), box(2), generator=torch.zeros(2))
    for right in (torch.arange(2), torch.Generator()):
        assert torch.equal(plain(image(), box(2), generator=right).samples, plain(image(), box(2)).samples)


def test_a_vae_without_a_distribution_has_no_samples() -> None:
    with pytest.raises(ValueError, match="posterior='sample' needs a VAE with a Gaussian posterior; this one has none"):
        InpaintEncoder(tiny(), posterior="sample")(image(), box(2), generator=torch.arange(2))
