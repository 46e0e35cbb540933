"""From a batch to a loss, with real tiny models."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from tiny_models import tiny_batch, tiny_denoiser, tiny_module, tiny_vae

from inpaint_module import InpaintEncoder
from inpaint_module.layouts import StableDiffusionLayout
from inpaint_module.lightning_module import InpaintDiffusion, prediction_target


def test_loss_has_gradients_for_the_denoiser_alone() -> None:
    module = tiny_module()
    loss = module.loss(tiny_batch())
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in module.denoiser.parameters())
    assert len(list(module.parameters())) == len(list(module.denoiser.parameters()))
    assert not any("vae" in name for name in module.state_dict())


def test_one_vae_pass_serves_both_images() -> None:
    module = tiny_module()
    vae = module.encoder.vae
    with mock.patch.object(vae.module, "encode", wraps=vae.module.encode) as encode:
        module.loss(tiny_batch(3))
    assert [call.args[0].shape for call in encode.call_args_list] == [(6, 3, 32, 48)]


def test_noise_and_timesteps_are_functions_of_the_position() -> None:
    module = tiny_module()
    batch = tiny_batch(4)
    inputs = []
    with mock.patch.object(module.denoiser, "forward", side_effect=module.denoiser.forward) as forward:
        module.loss(batch)
        for part in (slice(0, 1), slice(1, 4)):
            module.loss({name: value[part] for name, value in batch.items()})
        inputs = [call.args for call in forward.call_args_list]
    whole, parts = inputs[0], [torch.cat(pair) for pair in zip(*inputs[1:], strict=True)]
    torch.testing.assert_close(whole[0], parts[0], rtol=0, atol=1e-5)
    assert torch.equal(whole[1], parts[1])


def test_the_loss_falls() -> None:
    torch.manual_seed(0)
    module, batch = tiny_module(), tiny_batch()
    optimizer = torch.optim.AdamW(module.denoiser.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = module.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_prediction_targets_invert_the_noising(prediction_type: str) -> None:
    scheduler = DDPMScheduler(prediction_type=prediction_type, clip_sample=False)
    clean, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([10, 400, 900])
    target = prediction_target(scheduler, clean, noise, timestep)
    noisy = scheduler.add_noise(clean, noise, timestep)
    for index in range(3):
        step = DDIMScheduler.from_config(scheduler.config)
        step.set_timesteps(1000)
        found = step.step(target[[index]], int(timestep[index]), noisy[[index]]).pred_original_sample
        torch.testing.assert_close(found, clean[[index]], rtol=0, atol=2e-3)


def test_unknown_prediction_type_is_refused() -> None:
    scheduler = DDPMScheduler(prediction_type="flow")
    with pytest.raises(ValueError, match="must be epsilon, sample or v_prediction; got 'flow'"):
        prediction_target(scheduler, *torch.zeros(3, 1, 4, 2, 2))


def test_a_denoiser_of_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 9 channels, got 4"):
        InpaintDiffusion(
            tiny_denoiser(in_channels=4),
            InpaintEncoder(tiny_vae(), normalize=True),
            StableDiffusionLayout(),
            DDIMScheduler(),
        )


def test_an_encoder_that_does_not_suit_the_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="expects an encoder with normalize=True"):
        InpaintDiffusion(tiny_denoiser(), InpaintEncoder(tiny_vae()), StableDiffusionLayout(), DDIMScheduler())


def test_inpaint_keeps_known_pixels_and_is_repeatable() -> None:
    module, batch = tiny_module(), tiny_batch(2, 35, 52)
    first, again = module.inpaint(batch), module.inpaint(batch)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.image.shape == first.composite.shape == (2, 3, 32, 48)
    kept = (first.noise_mask == 0).expand_as(first.image)
    assert torch.equal(first.composite[kept], first.image[kept])
    assert first.inpainted.min() >= 0
    assert first.inpainted.max() <= 1
    hole = first.mask.expand_as(first.image)
    assert (first.masked_image[hole] == 0.5).all()


def test_deepcopy_shares_the_vae_and_copies_the_denoiser() -> None:
    module = tiny_module()
    twin = copy.deepcopy(module)
    assert twin.encoder.vae is module.encoder.vae
    assert twin.denoiser is not module.denoiser


def test_strict_load_needs_no_vae_keys() -> None:
    module = tiny_module()
    tiny_module().load_state_dict(module.state_dict(), strict=True)
