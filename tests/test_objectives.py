"""Objectives against diffusers' schedulers, and by hand."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
)
from diffusers.training_utils import compute_loss_weighting_for_sd3, compute_snr
from torch import Tensor

from inpaint_module.objectives.loss import Huber
from inpaint_module.objectives.objectives import DiffusionObjective, FlowMatchingObjective, Objective, objective_for
from inpaint_module.objectives.timesteps import LogitNormal, TimestepSampler
from inpaint_module.randomness import Stream, fold_in, key, normal

CLEAN, NOISE = torch.randn(2, 8, 4, 4, 6, generator=torch.Generator().manual_seed(0))
KEYS = key(0, torch.arange(8), Stream.TIMESTEP)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = FlowMatchEulerDiscreteScheduler
KINDS = ["epsilon", "v_prediction", "sample"]


class At(TimestepSampler):
    """These noise times, whatever the keys."""

    def __init__(self, *times: float):
        self.times = torch.tensor(times, dtype=torch.float64)

    def __call__(self, keys: Tensor) -> Tensor:
        return self.times


@pytest.mark.parametrize("kind", KINDS)
def test_diffusion_is_that_of_the_scheduler_to_the_bit(kind: str) -> None:
    scheduler = DDPMScheduler(**BETAS, prediction_type=kind)
    example = DiffusionObjective(scheduler)(CLEAN, NOISE, KEYS)
    assert torch.equal(example.noisy, scheduler.add_noise(CLEAN, NOISE, example.timesteps))
    velocity = scheduler.get_velocity(CLEAN, NOISE, example.timesteps)
    assert torch.equal(example.target, {"epsilon": NOISE, "v_prediction": velocity, "sample": CLEAN}[kind])
    assert example.timesteps.dtype == torch.int64
    assert example.weight is None


@pytest.mark.parametrize("sampler", [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2
def test_every_sampler_trains_as_ddpm(sampler: type[SchedulerMixin]) -> None:
    """Stable Diffusion ships PNDM and XL Euler, which adds noise in other units; all train alike."""
    found = DiffusionObjective(sampler(**BETAS))(CLEAN, NOISE, KEYS)
    expected = DiffusionObjective(DDPMScheduler(**BETAS))(CLEAN, NOISE, KEYS)
    assert all(torch.equal(a, b) for a, b in zip(found[:3], expected[:3], strict=True))


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr(kind: str) -> None:
    scheduler = DDIMScheduler(**BETAS, prediction_type=kind, rescale_betas_zero_snr=True)
    objective = DiffusionObjective(scheduler, timesteps=At(*[0.9999] * 8), snr_gamma=5.0)
    example = objective(CLEAN, NOISE, KEYS)
    assert example.timesteps.unique().tolist() == [999]
    assert torch.equal(example.noisy, NOISE)
    assert torch.equal(example.target, -CLEAN if kind == "v_prediction" else CLEAN)
    assert torch.equal(objective.clean(example.target, example.noisy, example.timesteps), CLEAN)
    assert example.weight is not None
    assert example.weight.unique().tolist() == [0]


@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_weights(kind: str) -> None:
    scheduler = DDPMScheduler(**BETAS, prediction_type=kind)
    times = At(0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.7, 1)
    example = DiffusionObjective(scheduler, timesteps=times, snr_gamma=5.0)(CLEAN, NOISE, KEYS)
    snr = compute_snr(scheduler, example.timesteps)
    least = snr.clamp_max(5)
    expected = {"epsilon": least / snr, "v_prediction": least / (snr + 1), "sample": least}[kind]
    assert example.weight is not None
    torch.testing.assert_close(example.weight, expected)
    assert len(example.weight.unique()) > 4


OBJECTIVES = [
    *(DiffusionObjective(DDPMScheduler(**BETAS, prediction_type=kind)) for kind in KINDS),
    FlowMatchingObjective(FLOW()),
    FlowMatchingObjective(FLOW(shift=3.0), timesteps=LogitNormal()),
    FlowMatchingObjective(FLOW(use_dynamic_shifting=True)),
]
NOISIER = [
    DiffusionObjective(DDPMScheduler(**BETAS), noise_offset=0.1, input_perturbation=0.1),
    FlowMatchingObjective(FLOW(), noise_offset=0.1, input_perturbation=0.1),
]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_target_speaks_of_the_clean_latents(objective: Objective) -> None:
    noisy, timesteps, target, _ = objective(CLEAN, NOISE, KEYS)
    torch.testing.assert_close(objective.clean(target, noisy, timesteps), CLEAN, rtol=0, atol=2e-5)


@pytest.mark.parametrize("objective", OBJECTIVES + NOISIER)
def test_a_sample_knows_nothing_of_its_batch(objective: Objective) -> None:
    parts = [objective(CLEAN[part], NOISE[part], KEYS[part]) for part in (slice(0, 1), slice(1, 6), slice(6, 8))]
    for index, whole in enumerate(objective(CLEAN, NOISE, KEYS)[:3]):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole)


def test_golden_timesteps() -> None:
    found = [objective(CLEAN, NOISE, KEYS).timesteps for objective in (OBJECTIVES[0], OBJECTIVES[4])]
    digests = [hashlib.sha256((steps * 64).round().long().numpy().tobytes()).hexdigest()[:16] for steps in found]
    assert digests == ["e66f157a7870ba18", "8ce254ac6bd7ccaa"]


def test_flow_matching_by_hand() -> None:
    clean, noise = torch.full((3, 1, 1, 1), 2.0), torch.full((3, 1, 1, 1), -2.0)
    objective = FlowMatchingObjective(FLOW(shift=3.0), timesteps=At(0, 0.5, 1))
    noisy, timesteps, target, weight = objective(clean, noise, KEYS[:3])
    assert noisy.flatten().tolist() == [2, -1, -2]  # three quarters of the way at 0.5, shifted by 3
    assert timesteps.tolist() == [0, 750, 1000]
    assert target.flatten().tolist() == [-4, -4, -4]
    assert weight is None


def test_flow_matching_is_that_of_the_scheduler() -> None:
    scheduler = FLOW(shift=3.0)
    times = torch.tensor([1, 20, 130, 400, 500, 640, 800, 1000]) / 1000  # of its thousand steps
    example = FlowMatchingObjective(scheduler, timesteps=At(*times.tolist()))(CLEAN, NOISE, KEYS)
    steps = scheduler.timesteps[1000 - (times * 1000).round().long()]
    torch.testing.assert_close(example.timesteps, steps)
    torch.testing.assert_close(example.noisy, scheduler.scale_noise(CLEAN, steps, NOISE))


@pytest.mark.parametrize("options", [{}, {"base_shift": 0.3, "max_shift": 0.9}, {"time_shift_type": "linear"}])
def test_dynamic_shift_is_that_of_the_scheduler(options: dict[str, Any]) -> None:
    scheduler = FLOW(use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=16, **options)
    times = [1, 0.75, 0.5, 0.25]
    example = FlowMatchingObjective(scheduler, timesteps=At(*times))(CLEAN[:4], NOISE[:4], KEYS[:4])
    config = scheduler.config
    tokens = CLEAN.shape[-2] // 2 * (CLEAN.shape[-1] // 2)  # 6
    mu = config.base_shift + (config.max_shift - config.base_shift) * (tokens - 4) / 12
    scheduler.set_timesteps(sigmas=times, mu=mu)
    torch.testing.assert_close(example.timesteps, scheduler.timesteps)


def test_dynamic_shift_bears_a_time_of_zero() -> None:
    objective = FlowMatchingObjective(FLOW(use_dynamic_shifting=True), timesteps=At(0))
    assert objective(CLEAN[:1], NOISE[:1], KEYS[:1]).timesteps.tolist() == pytest.approx([0], abs=1e-4)


def test_a_shift_of_ones_own() -> None:
    for scheduler in (FLOW(shift=3.0), FLOW(use_dynamic_shifting=True)):
        objective = FlowMatchingObjective(scheduler, timesteps=At(0.5), shift=1.0)
        assert objective(CLEAN[:1], NOISE[:1], KEYS[:1]).timesteps.tolist() == [500]


@pytest.mark.parametrize("scheme", ["sigma_sqrt", "cosmap"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_weights_are_those_of_diffusers(scheme: str, shift: float) -> None:
    scheduler = FLOW(shift=shift)
    times = torch.tensor([1, 20, 130, 400, 500, 640, 800, 1000]) / 1000  # of its thousand steps
    objective = FlowMatchingObjective(scheduler, timesteps=At(*times.tolist()), weighting=scheme)
    sigmas = scheduler.sigmas[1000 - (times * 1000).round().long()]
    weight = objective(CLEAN, NOISE, KEYS).weight
    torch.testing.assert_close(weight, compute_loss_weighting_for_sd3(scheme, sigmas), rtol=1e-4, atol=0)


def test_flow_weights_by_hand() -> None:
    def weight(scheme: str, **options: Any) -> list[float]:
        objective = FlowMatchingObjective(FLOW(), timesteps=At(0, 0.25, 0.5, 1), weighting=scheme, **options)
        found = objective(CLEAN[:4], NOISE[:4], KEYS[:4]).weight
        assert found is not None
        assert found.dtype == torch.float32
        return found.tolist()

    assert weight("sigma_sqrt") == pytest.approx([1e6, 16, 4, 1])  # at 0 as at timestep 1 of 1000
    assert weight("cosmap") == pytest.approx(
        [0.63662, 1.01859, 1.27324, 0.63662], rel=1e-5
    )  # 2 / pi over 1, .625, .5, 1
    assert weight("sigma_sqrt", shift=3.0) == pytest.approx([(1.002 / 0.003) ** 2, 4, 16 / 9, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_noise_offset_and_perturbation_are_those_of_the_training_scripts(kind: str) -> None:
    """Of diffusers' train_text_to_image: the offset is part of the noise and its target, the perturbation is not."""
    scheduler = DDPMScheduler(**BETAS, prediction_type=kind)
    example = DiffusionObjective(scheduler, noise_offset=0.2, input_perturbation=0.1)(CLEAN, NOISE, KEYS)
    noise = NOISE + 0.2 * normal(fold_in(KEYS, 0), (4, 1, 1))
    more = noise + 0.1 * normal(fold_in(KEYS, 1), (4, 4, 6))
    assert torch.equal(example.noisy, scheduler.add_noise(CLEAN, more, example.timesteps))
    velocity = scheduler.get_velocity(CLEAN, noise, example.timesteps)
    assert torch.equal(example.target, {"epsilon": noise, "v_prediction": velocity, "sample": CLEAN}[kind])
    assert torch.equal(example.timesteps, DiffusionObjective(scheduler)(CLEAN, NOISE, KEYS).timesteps)


def test_noise_offset_and_perturbation_in_flow_matching() -> None:
    objective = FlowMatchingObjective(FLOW(), timesteps=At(*[0.25] * 8), noise_offset=0.2, input_perturbation=0.1)
    example = objective(CLEAN, NOISE, KEYS)
    noise = NOISE + 0.2 * normal(fold_in(KEYS, 0), (4, 1, 1))
    assert torch.equal(example.target, noise - CLEAN)
    more = noise + 0.1 * normal(fold_in(KEYS, 1), (4, 4, 6))
    torch.testing.assert_close(example.noisy, 0.75 * CLEAN + 0.25 * more)


def test_offsets_are_the_same_over_a_channel_and_differ_between_channels_and_samples() -> None:
    keys = key(3, torch.arange(500), Stream.TIMESTEP)
    still = torch.zeros(500, 4, 2, 3)
    objective = FlowMatchingObjective(FLOW(), timesteps=At(*[1.0] * 500), noise_offset=0.1)
    offsets = objective(still, still, keys).target
    assert torch.equal(offsets, offsets[..., :1, :1].expand_as(offsets))
    offsets = offsets[..., 0, 0]
    assert abs(offsets.std() - 0.1) < 0.005
    assert abs(offsets.mean()) < 0.01
    assert (torch.corrcoef(offsets.T) - torch.eye(4)).abs().max() < 0.15
    perturbed = FlowMatchingObjective(FLOW(), timesteps=At(*[1.0] * 500), input_perturbation=0.1)(still, still, keys)
    assert not perturbed.target.any()
    assert abs(perturbed.noisy.std() - 0.1) < 0.005


def test_huber_thresholds_follow_the_timesteps() -> None:
    scheduler = DDPMScheduler(**BETAS)
    timesteps = torch.tensor([0, 500, 999])
    alphas = scheduler.alphas_cumprod[timesteps]
    expected = 0.9 / (1 + ((1 - alphas) / alphas) ** 0.5) ** 2 + 0.1  # as sd-scripts has it
    thresholds = DiffusionObjective(scheduler, huber=Huber(0.1)).thresholds(timesteps)
    torch.testing.assert_close(thresholds, expected)
    for objective in (
        DiffusionObjective(scheduler, huber=Huber(0.01, schedule="exponential")),
        FlowMatchingObjective(FLOW(), huber=Huber(0.01, schedule="exponential")),
    ):
        found = objective.thresholds(torch.tensor([0, 500]))
        assert found is not None
        assert found.tolist() == pytest.approx([1, 0.1])
    assert DiffusionObjective(scheduler).thresholds(timesteps) is None
    assert FlowMatchingObjective(FLOW()).thresholds(timesteps) is None


def test_a_scheduler_finds_its_objective() -> None:
    assert isinstance(objective_for(FLOW()), FlowMatchingObjective)
    assert isinstance(objective_for(DDIMScheduler()), DiffusionObjective)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionObjective(FLOW()), "expects a scheduler with betas, got FlowMatchEulerDiscreteScheduler"),
        (lambda: FlowMatchingObjective(DDIMScheduler()), "expects a flow matching scheduler, got DDIMScheduler"),
        (lambda: DiffusionObjective(DDIMScheduler(), snr_gamma=0), "snr_gamma must be over 0, or null .* got 0"),
        (lambda: FlowMatchingObjective(FLOW(), shift=-1), "shift must be over 0, or null .* got -1"),
        (lambda: FlowMatchingObjective(FLOW(), weighting="mode"), "weighting must be sigma_sqrt, cosmap or null"),
        (lambda: FlowMatchingObjective(FLOW(), huber=Huber()), "expected constant or exponential in flow matching"),
        (lambda: DiffusionObjective(DDIMScheduler(), noise_offset=-0.1), "noise_offset must be a number from 0 on"),
        (lambda: FlowMatchingObjective(FLOW(), input_perturbation=-1), "input_perturbation must be a number from 0 on"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
