"""Sampling with a denoiser that knows the answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor, nn

from inpaint_module import InpaintLatents
from inpaint_module.layouts import StableDiffusionLayout
from inpaint_module.sampling import composite, inpaint_latents, mean_colour_fill

CLEAN = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0))
LATENTS = InpaintLatents(torch.zeros_like(CLEAN), torch.ones(2, 1, 48, 40))


class Oracle(nn.Module):
    """Predicts the clean latents whatever it is shown, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, inputs: Tensor, timestep: Tensor) -> SimpleNamespace:
        self.shapes.append(tuple(inputs.shape))
        return SimpleNamespace(sample=CLEAN)


def test_an_oracle_is_believed() -> None:
    scheduler = DDIMScheduler(
        prediction_type="sample", clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    oracle = Oracle()
    out = inpaint_latents(oracle, scheduler, StableDiffusionLayout(), LATENTS, torch.randn_like(CLEAN), 4)
    torch.testing.assert_close(out, CLEAN, rtol=0, atol=1e-4)
    assert oracle.shapes == [(2, 9, 6, 5)] * 4
    assert scheduler.num_inference_steps is None  # the caller's scheduler is not touched


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2
def test_schedulers_that_scale_their_input() -> None:
    scheduler = EulerDiscreteScheduler(prediction_type="sample")
    out = inpaint_latents(Oracle(), scheduler, StableDiffusionLayout(), LATENTS, torch.randn_like(CLEAN), 5)
    torch.testing.assert_close(out, CLEAN, rtol=0, atol=1e-3)


def test_composite_keeps_known_pixels_bit_for_bit() -> None:
    image, made = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., :2] = 1
    out = composite(made, image, mask)
    assert torch.equal(out[..., 2:], image[..., 2:])
    assert torch.equal(out[..., :2], made[..., :2])


def test_mean_colour_is_that_of_the_known_pixels() -> None:
    image = torch.zeros(2, 3, 2, 2)
    image[:, 0, 0, 0], image[:, 0, 0, 1] = 1.0, 0.5
    mask = torch.zeros(2, 1, 2, 2)
    mask[0, :, 1] = 1
    mask[1] = 1
    filled = mean_colour_fill(image, mask)
    assert filled.shape == image.shape
    assert filled[0, :, 1, 1].tolist() == [0.75, 0, 0]
    assert filled[1].unique().tolist() == [0.5]
