"""What a denoiser learns: how a clean latent is made noisy, and what is to be said of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, SchedulerMixin
from torch import Tensor

from inpaint_module.objectives.loss import Huber, prediction_type
from inpaint_module.objectives.timesteps import TimestepSampler, Uniform, resolution_mu, shifted
from inpaint_module.randomness import fold_in, normal


class Example(NamedTuple):
    """What a denoiser gets, and what it should say.

    Attributes:
        noisy: float32 (B, C, h, w).
        timesteps: (B,) as the scheduler counts them, for the denoiser.
        target: float32 (B, C, h, w).
        weight: float32 (B,), how much each sample counts; None for all alike.
    """

    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    weight: Tensor | None = None


class Objective(ABC):
    """A training target that fits a scheduler, so that the scheduler samples with what was learned."""

    @abstractmethod
    def __call__(self, clean: Tensor, noise: Tensor, keys: Tensor) -> Example:
        """Make clean latents noisy.

        Args:
            clean: float32 (B, C, h, w), in the denoiser's space.
            noise: standard normal, alike.
            keys: int64 (B,), from which each sample's timestep is drawn.
        """

    def at(self, clean: Tensor, noise: Tensor, times: Tensor) -> Example:
        """As training at given times, without weights and what makes training harder: offsets, perturbed noise.

        Args:
            clean: float32 (B, C, h, w), in the denoiser's space.
            noise: standard normal, alike.
            times: (B,) in 0..1, the share of the scheduler's timesteps, 1 nothing but noise.
        """
        raise ValueError(
            f"model.objective: ValidationLoss expects a method `at` that makes latents noisy at given times, "
            f"{type(self).__name__} has none; write it, or drop the callback: trainer.callbacks.ValidationLoss=null"
        )

    @abstractmethod
    def clean(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents (B, C, h, w) that a prediction at these timesteps (B,) speaks of."""

    def thresholds(self, timesteps: Tensor) -> Tensor | None:
        """Of the pseudo-Huber loss at these timesteps (B,): float32 (B,), or None for the squared error."""
        return None


def offset_noise(noise: Tensor, keys: Tensor, amount: float) -> Tensor:
    """Noise with an offset of its own for each sample and channel, `amount` times standard normal.

    So that a model learns very dark and bright pictures; Guttenberg 2023, "Diffusion with offset noise", crosslabs.org,
    where it is 0.1.

    Args:
        noise: standard normal, float32 (B, C, h, w).
        keys: int64 (B,), as the objective's.
        amount: 0 leaves the noise as it is.
    """
    if not amount:
        return noise
    return noise + amount * normal(fold_in(keys, 0), (noise.shape[1], 1, 1))


def perturbed_noise(noise: Tensor, keys: Tensor, amount: float) -> Tensor:
    """What the noisy latents are made with, while the target stays that of `noise`: `amount` times more of other noise.

    So that a model bears its own errors when sampling; Ning et al. 2023, "Input perturbation reduces exposure bias in
    diffusion models", algorithm 1, where it is 0.1. Arguments as for `offset_noise`.
    """
    if not amount:
        return noise
    return noise + amount * normal(fold_in(keys, 1), tuple(noise.shape[1:]))


def _check_amounts(**amounts: float) -> None:
    for name, amount in amounts.items():
        if not 0 <= amount < float("inf"):
            raise ValueError(f"objective {name} must be a number from 0 on, got {amount}")


ObjectiveCallable = Callable[[SchedulerMixin], Objective]


class DiffusionObjective(Objective):
    """Diffusion: noisy = signal * clean + sigma * noise; the target is what the scheduler's `prediction_type` says.

    The levels are those of the scheduler's betas, also where it samples in other units, as Euler does.

    Args:
        scheduler: diffusers scheduler with betas; `prediction_type` epsilon, v_prediction or sample.
        timesteps: density of timesteps; None for uniform.
        snr_gamma: weigh each sample's squared error of the clean latents by min(SNR, gamma); Hang et al. 2023,
            "Efficient diffusion training via Min-SNR weighting", where it is 5. None for no weights. With zero
            terminal SNR the last timestep of v_prediction then weighs nothing.
        noise_offset: see `offset_noise`; 0 for none.
        input_perturbation: see `perturbed_noise`; 0 for none.
        huber: the pseudo-Huber loss; None for the squared error.

    Raises:
        ValueError: another scheduler or prediction type, a gamma of 0 or less, a negative amount of noise, or epsilon
            at zero terminal SNR.
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        *,
        timesteps: TimestepSampler | None = None,
        snr_gamma: float | None = None,
        noise_offset: float = 0.0,
        input_perturbation: float = 0.0,
        huber: Huber | None = None,
    ):
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(f"DiffusionObjective expects a scheduler with betas, got {type(scheduler).__name__}")
        if snr_gamma is not None and not snr_gamma > 0:
            raise ValueError(f"snr_gamma must be over 0, or null for no weights; got {snr_gamma}")
        _check_amounts(noise_offset=noise_offset, input_perturbation=input_perturbation)
        self.prediction = prediction_type(scheduler)
        self.noise_offset, self.input_perturbation, self.huber = noise_offset, input_perturbation, huber
        self.timesteps, self.snr_gamma = timesteps or Uniform(), snr_gamma
        self._alphas = scheduler.alphas_cumprod.float()

    def __call__(self, clean: Tensor, noise: Tensor, keys: Tensor) -> Example:
        """See `Objective.__call__`."""
        timesteps = self._counted(self.timesteps(keys))
        signal, sigma = self.levels(timesteps)
        noise = offset_noise(noise, keys, self.noise_offset)
        target = self.prediction.target(clean, noise, signal, sigma)
        noisy = signal * clean + sigma * perturbed_noise(noise, keys, self.input_perturbation)
        return Example(noisy, timesteps, target, self.weight(timesteps))

    def at(self, clean: Tensor, noise: Tensor, times: Tensor) -> Example:
        """See `Objective.at`."""
        timesteps = self._counted(times)
        signal, sigma = self.levels(timesteps)
        return Example(signal * clean + sigma * noise, timesteps, self.prediction.target(clean, noise, signal, sigma))

    def _counted(self, times: Tensor) -> Tensor:
        """Noise times 0..1 as the scheduler counts them: int64 (B,)."""
        count = len(self._alphas)
        return (times * count).long().clamp_max(count - 1)

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and sigma at timesteps int64 (B,): float32 (B, 1, 1, 1) each."""
        self._alphas = self._alphas.to(timesteps.device)
        alpha = self._alphas[timesteps].reshape(-1, 1, 1, 1)
        return alpha**0.5, (1 - alpha) ** 0.5

    def weight(self, timesteps: Tensor) -> Tensor | None:
        """How much samples at these timesteps (B,) count: float32 (B,), or None without `snr_gamma`."""
        if self.snr_gamma is None:
            return None
        signal, sigma = self.levels(timesteps)
        return self.prediction.min_snr((signal / sigma).square().flatten(), self.snr_gamma)

    def thresholds(self, timesteps: Tensor) -> Tensor | None:
        """See `Objective.thresholds`."""
        if self.huber is None:
            return None
        signal, sigma = self.levels(timesteps)
        return self.huber.thresholds(timesteps / len(self._alphas), (sigma / signal).flatten())

    def clean(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """See `Objective.clean`."""
        return self.prediction.clean(prediction, noisy, *self.levels(timesteps))


class FlowMatchingObjective(Objective):
    """Rectified flow: noisy = (1 - t) clean + t noise, target = noise - clean; Liu et al. 2022, Esser et al. 2024.

    Args:
        scheduler: a flow matching scheduler of diffusers; the denoiser gets t * num_train_timesteps.
        timesteps: density of t before the shift; None for uniform.
        shift: shift of t; None for what the scheduler samples with: its static shift, or that of the picture's
            size if it has `use_dynamic_shifting`. 1 for none.
        weighting: of each sample's loss by its shifted t: "sigma_sqrt", t^-2, or "cosmap",
            2 / (pi (1 - 2 t + 2 t^2)); Esser et al. 2024, section 3.1, and `compute_loss_weighting_for_sd3` of
            diffusers. None for none. A t under that of timestep 1, the least there, weighs as much as it.
        noise_offset: see `offset_noise`; 0 for none.
        input_perturbation: see `perturbed_noise`; 0 for none.
        huber: the pseudo-Huber loss, not by "snr"; None for the squared error.

    Raises:
        ValueError: another scheduler or weighting, a shift of 0 or less, a negative amount of noise, or a Huber loss
            that needs betas.
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        *,
        timesteps: TimestepSampler | None = None,
        shift: float | None = None,
        weighting: str | None = None,
        noise_offset: float = 0.0,
        input_perturbation: float = 0.0,
        huber: Huber | None = None,
    ):
        if not is_flow_matching(scheduler):
            raise ValueError(f"FlowMatchingObjective expects a flow matching scheduler, got {type(scheduler).__name__}")
        if shift is not None and not shift > 0:
            raise ValueError(f"shift must be over 0, or null for the scheduler's; got {shift}")
        if weighting not in (None, "sigma_sqrt", "cosmap"):
            raise ValueError(f"weighting must be sigma_sqrt, cosmap or null for none; got {weighting!r}")
        _check_amounts(noise_offset=noise_offset, input_perturbation=input_perturbation)
        if huber is not None and huber.schedule == "snr":
            raise ValueError("huber.schedule: expected constant or exponential in flow matching, got 'snr'")
        self.noise_offset, self.input_perturbation, self.huber = noise_offset, input_perturbation, huber
        self.weighting = weighting
        self.schedule = scheduler
        self.timesteps, self.shift = timesteps or Uniform(), shift

    def __call__(self, clean: Tensor, noise: Tensor, keys: Tensor) -> Example:
        """See `Objective.__call__`."""
        times = self.shifted(self.timesteps(keys), clean.shape[-2:]).float()
        t = times.reshape(-1, 1, 1, 1)
        noise = offset_noise(noise, keys, self.noise_offset)
        noisy = (1 - t) * clean + t * perturbed_noise(noise, keys, self.input_perturbation)
        timesteps = times * self.schedule.config.num_train_timesteps
        return Example(noisy, timesteps, noise - clean, self.weight(times, clean.shape[-2:]))

    def at(self, clean: Tensor, noise: Tensor, times: Tensor) -> Example:
        """See `Objective.at`; `times` are those after any shift."""
        times = times.float()
        t = times.reshape(-1, 1, 1, 1)
        return Example((1 - t) * clean + t * noise, times * self.schedule.config.num_train_timesteps, noise - clean)

    def weight(self, times: Tensor, size: torch.Size) -> Tensor | None:
        """How much samples at these shifted times (B,) count: float32 (B,), or None without `weighting`."""
        if self.weighting is None:
            return None
        if self.weighting == "cosmap":
            return 2 / (math.pi * (1 - 2 * times + 2 * times.square()))
        first = torch.full_like(times, 1 / self.schedule.config.num_train_timesteps, dtype=torch.float64)
        return torch.maximum(times, self.shifted(first, size).float()) ** -2.0

    def thresholds(self, timesteps: Tensor) -> Tensor | None:
        """See `Objective.thresholds`."""
        return (
            None if self.huber is None else self.huber.thresholds(timesteps / self.schedule.config.num_train_timesteps)
        )

    def shifted(self, times: Tensor, size: torch.Size) -> Tensor:
        """Noise times (B,) for latents of h x w = `size`."""
        config = self.schedule.config
        if self.shift is None and config.get("use_dynamic_shifting"):
            mu = resolution_mu(config, size[0] * size[1] // 4)
            # the scheduler's formula divides by t
            return self.schedule.time_shift(mu, 1.0, times.clamp_min(2.0**-33))
        return shifted(times, config.get("shift", 1.0) if self.shift is None else self.shift)

    def clean(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """See `Objective.clean`."""
        t = (timesteps / self.schedule.config.num_train_timesteps).reshape(-1, 1, 1, 1)
        return noisy - t * prediction


def objective_for(scheduler: SchedulerMixin, timesteps: TimestepSampler | None = None) -> Objective:
    """What a scheduler samples with: flow matching or diffusion, timesteps uniform unless given, no weights."""
    kind = FlowMatchingObjective if is_flow_matching(scheduler) else DiffusionObjective
    return kind(scheduler, timesteps=timesteps)


def is_flow_matching(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler walks straight lines from noise to image."""
    return isinstance(scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler)
