"""Sampling with a denoiser that knows the answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from inpaint_module import InpaintLatents
from inpaint_module.base_models import DenoiserCall, FluxCall, StableDiffusionLayout
from inpaint_module.sampling import composite, inpaint_latents, scheduled

CLEAN = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(CLEAN.shape, generator=torch.Generator().manual_seed(1))
LATENTS = InpaintLatents(torch.zeros_like(CLEAN), torch.ones(2, 1, 48, 40))


class Oracle(nn.Module):
    """Predicts the clean latents whatever it is shown, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float32
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


class FlowOracle(nn.Module):
    """Predicts the velocity that leads to the clean latents, noise - clean, as far as it can see it."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def forward(self, inputs: Tensor, timestep: Tensor, told: float = 0.0) -> SimpleNamespace:
        self.times.append(timestep[0].item())
        assert timestep.shape == (2,)
        time = (timestep / 1000).reshape(-1, 1, 1, 1)
        return SimpleNamespace(sample=(inputs[:, :4] - CLEAN) / time + told)


@pytest.mark.parametrize("options", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_flow_matching_walks_to_the_oracles_answer(options: dict[str, Any]) -> None:
    oracle = FlowOracle()
    scheduler = FlowMatchEulerDiscreteScheduler(**options)
    out = inpaint_latents(oracle, scheduler, StableDiffusionLayout(), LATENTS, torch.randn_like(CLEAN), 4)
    torch.testing.assert_close(out, CLEAN, rtol=0, atol=1e-5)
    assert oracle.times[0] == 1000
    assert len(oracle.times) == 4


def test_schedules_are_those_of_the_pipelines() -> None:
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    found = scheduled(dynamic, 4, (32, 32), torch.device("cpu"), FluxCall())  # 256 tokens, where mu is 0.5
    expected = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    expected.set_timesteps(sigmas=[1, 0.75, 0.5, 0.25], mu=0.5)
    torch.testing.assert_close(found.sigmas, expected.sigmas)
    static = scheduled(FlowMatchEulerDiscreteScheduler(shift=3.0), 4, (32, 32), torch.device("cpu"), DenoiserCall())
    expected = FlowMatchEulerDiscreteScheduler(shift=3.0)
    expected.set_timesteps(4)
    assert torch.equal(static.sigmas, expected.sigmas)


def test_one_step_of_a_scheduler_that_stretches_is_refused() -> None:
    stretching = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    with pytest.raises(
        ValueError, match="sampling_steps: expected at least 2 with a scheduler of shift_terminal, got 1"
    ):
        scheduled(stretching, 1, (32, 32), torch.device("cpu"), FluxCall())
    assert scheduled(stretching, 2, (32, 32), torch.device("cpu"), FluxCall()).sigmas.isfinite().all()


def test_guidance_goes_on_past_the_conditional_prediction() -> None:
    told = {"conditions": {"told": 1.0}, "unconditional": {"told": 0.5}}

    def one_step(**options: Any) -> Tensor:
        scheduler = FlowMatchEulerDiscreteScheduler()
        return inpaint_latents(FlowOracle(), scheduler, StableDiffusionLayout(), LATENTS, NOISE, 1, **options)

    # a step from time 1 to 0 takes the prediction off the noise: what was told ends up in the result, negated
    torch.testing.assert_close(one_step(**told), CLEAN - 1)
    torch.testing.assert_close(one_step(**told, guidance_scale=0.0), CLEAN - 0.5)
    torch.testing.assert_close(one_step(**told, guidance_scale=4.0), CLEAN - 2.5)


def test_guidance_needs_both_sides() -> None:
    with pytest.raises(ValueError, match="guidance_scale must be 1 without unconditional conditions, got 3"):
        inpaint_latents(FlowOracle(), DDIMScheduler(), StableDiffusionLayout(), LATENTS, NOISE, 1, guidance_scale=3.0)


def test_composite_keeps_known_pixels_bit_for_bit() -> None:
    image, made = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., :2] = 1
    out = composite(made, image, mask)
    assert torch.equal(out[..., 2:], image[..., 2:])
    assert torch.equal(out[..., :2], made[..., :2])
