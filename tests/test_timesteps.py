"""Densities over the noise time, and its shifts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux_fill import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling
from torch import Tensor

from inpaint_module.objectives.timesteps import (
    LogitNormal,
    Mode,
    TimestepSampler,
    Uniform,
    mode_time,
    resolution_mu,
    shifted,
)
from inpaint_module.randomness import Stream, draw, integers, key

KEYS = key(0, torch.arange(20_000), Stream.TIMESTEP)
SAMPLERS = [Uniform(), LogitNormal(0.5, 1.2), Mode(1.29), Mode(-0.8)]
FIRST_FOUR = {
    "Uniform": [0.94332776, 0.64855872, 0.54866547, 0.27934146],
    "LogitNormal": [0.56039152, 0.7520022, 0.4170008, 0.78627669],
    "Mode": [0.11958359, 0.45001922, 0.48678452, 0.59314227],
}


def farthest(found: Tensor, cumulative: Tensor) -> float:
    """The Kolmogorov-Smirnov distance of samples from the distribution that has these values at the sorted samples."""
    steps = torch.arange(1, len(found) + 1) / len(found)
    return (cumulative - steps).abs().max().item()


def cumulative(sampler: TimestepSampler, times: Tensor) -> Tensor:
    if isinstance(sampler, LogitNormal):
        return torch.special.ndtr((torch.logit(times) - sampler.mean) / sampler.std)
    if isinstance(sampler, Mode):
        grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
        return 1 - torch.from_numpy(np.interp(times, mode_time(grid, sampler.scale).flip(0), grid.flip(0)))
    return times


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_distribution(sampler: TimestepSampler) -> None:
    times = sampler(KEYS).sort().values
    assert times.dtype == torch.float64
    assert times[0] >= 0
    assert times[-1] <= 1
    # 1.63 / sqrt(n) is passed once in a hundred by the right distribution
    assert farthest(times, cumulative(sampler, times)) < 1.63 / math.sqrt(len(times))


def test_the_distance_tells_distributions_apart() -> None:
    times = LogitNormal(0.5, 1.2)(KEYS).sort().values
    assert farthest(times, cumulative(LogitNormal(0.4, 1.2), times)) > 1.63 / math.sqrt(len(times))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_a_sample_knows_nothing_of_its_batch(sampler: TimestepSampler) -> None:
    parts = [sampler(part) for part in KEYS[:50].split([1, 16, 33])]
    assert torch.equal(torch.cat(parts), sampler(KEYS[:50]))


@pytest.mark.parametrize("sampler", SAMPLERS[:3], ids=lambda s: type(s).__name__)
def test_golden_numbers(sampler: TimestepSampler) -> None:
    found = sampler(KEYS[:4]).tolist()
    assert found == pytest.approx(FIRST_FOUR[type(sampler).__name__], abs=1e-7)


def test_uniform_times_make_the_integers_that_a_draw_makes() -> None:
    words = draw(KEYS, 1)[:, 0]
    for count in (1000, 1024, 7):
        assert torch.equal((Uniform()(KEYS) * count).long(), integers(words, 0, count))


def test_mode_is_that_of_diffusers() -> None:
    u = torch.rand(100, generator=torch.Generator().manual_seed(3))
    theirs = compute_density_for_timestep_sampling(
        "mode", 100, mode_scale=1.29, generator=torch.Generator().manual_seed(3)
    )
    torch.testing.assert_close(mode_time(u, 1.29), theirs)
    assert mode_time(torch.tensor([0.0, 0.5, 1.0]), 1.29).tolist() == pytest.approx([1, 0.5, 0], abs=1e-6)


def test_a_positive_logit_mean_leans_to_noise() -> None:
    assert LogitNormal(1.0)(KEYS).median() == pytest.approx(1 / (1 + math.exp(-1)), abs=0.01)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_shift_is_that_of_the_scheduler(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    times = torch.arange(1000, 0, -1) / 1000
    torch.testing.assert_close(shifted(times, shift), scheduler.sigmas)


def test_shift_by_hand() -> None:
    assert shifted(torch.tensor([0.0, 0.25, 0.5, 1.0]), 3.0).tolist() == [0.0, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096])
def test_mu_is_that_of_the_flux_pipeline(tokens: int) -> None:
    config = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    assert resolution_mu(config, tokens) == pytest.approx(calculate_shift(tokens))


def test_mu_follows_the_config() -> None:
    config = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.0, max_shift=1.0, base_image_seq_len=0, max_image_seq_len=100
    ).config
    assert resolution_mu(config, 25) == 0.25


def test_a_std_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="LogitNormal std must be over 0, got 0"):
        LogitNormal(std=0)


@pytest.mark.parametrize("scale", [-1.1, 1.8])
def test_a_scale_without_density_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=rf"Mode scale must be in -1..1.7519, got {scale}"):
        Mode(scale)
