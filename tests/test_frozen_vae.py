"""A VAE stays as it is: eval mode, no gradients, its own dtype, a fingerprint of its weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny_vaes
import torch
from torch import nn
from vaes_by_hand import families, image_of, latents_of, pixels

from inpaint_module.encoder import InpaintEncoder
from inpaint_module.vae import as_vae


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


SHALLOW: dict[str, Callable[[], nn.Module]] = {
    "with a distribution": lambda: tiny_vaes.kl(blocks=2),
    "with latents": tiny_vaes.tiny,
    "with frames": lambda: tiny_vaes.qwen(dim_mult=[1, 1], temperal_downsample=[False]),
}


SLOW_KINDS = [pytest.param(name, marks=pytest.mark.slow) for name in ("with latents", "with frames")]


@pytest.mark.parametrize("name", ["with a distribution", *SLOW_KINDS])
def test_encoder_compiles_into_one_graph(name: str) -> None:
    torch.manual_seed(0)
    encoder, images = InpaintEncoder(SHALLOW[name]()), pixels(2, 16, 24)
    mask = torch.zeros(2, 1, 16, 24, dtype=torch.bool)
    mask[..., 4:9, 5:12] = True
    expected = encoder(images, mask, target=True)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    encoder.vae.module.train()
    for got, want in zip(compiled(images, mask, target=True), expected, strict=True):
        assert torch.equal(got, want)
