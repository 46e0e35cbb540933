"""What a denoiser learns: how a clean latent is made noisy, and what is to be said of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, SchedulerMixin
from torch import Tensor

from inpaint_module.objectives.prediction_types import prediction_type
from inpaint_module.objectives.timesteps import TimestepSampler, Uniform, resolution_mu, shifted


class Example(NamedTuple):
    """What a denoiser is shown, and what it should say.

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

    @abstractmethod
    def clean(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents (B, C, h, w) that a prediction at these timesteps (B,) speaks of."""


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

    Raises:
        ValueError: another scheduler or prediction type, a gamma of 0 or less, or epsilon at zero terminal SNR.
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        *,
        timesteps: TimestepSampler | None = None,
        snr_gamma: float | None = None,
    ):
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(f"DiffusionObjective expects a scheduler with betas, got {type(scheduler).__name__}")
        if snr_gamma is not None and not snr_gamma > 0:
            raise ValueError(f"snr_gamma must be over 0, or null for no weights; got {snr_gamma}")
        self.prediction = prediction_type(scheduler)
        self.timesteps, self.snr_gamma = timesteps or Uniform(), snr_gamma
        self._alphas = scheduler.alphas_cumprod.float()

    def __call__(self, clean: Tensor, noise: Tensor, keys: Tensor) -> Example:
        """See `Objective.__call__`."""
        count = len(self._alphas)
        timesteps = (self.timesteps(keys) * count).long().clamp_max(count - 1)
        signal, sigma = self.levels(timesteps)
        target = self.prediction.target(clean, noise, signal, sigma)
        return Example(signal * clean + sigma * noise, timesteps, target, self.weight(timesteps))

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

    def clean(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """See `Objective.clean`."""
        return self.prediction.clean(prediction, noisy, *self.levels(timesteps))


class FlowMatchingObjective(Objective):
    """Rectified flow: noisy = (1 - t) clean + t noise, target = noise - clean; Liu et al. 2022, Esser et al. 2024.

    Args:
        scheduler: a flow matching scheduler of diffusers; the denoiser is told t * num_train_timesteps.
        timesteps: density of t before the shift; None for uniform.
        shift: shift of t; None for what the scheduler samples with: its static shift, or that of the picture's
            size if it has `use_dynamic_shifting`. 1 for none.

    Raises:
        ValueError: another scheduler, or a shift of 0 or less.
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        *,
        timesteps: TimestepSampler | None = None,
        shift: float | None = None,
    ):
        if not is_flow_matching(scheduler):
            raise ValueError(f"FlowMatchingObjective expects a flow matching scheduler, got {type(scheduler).__name__}")
        if shift is not None and not shift > 0:
            raise ValueError(f"shift must be over 0, or null for the scheduler's; got {shift}")
        self.schedule = scheduler
        self.timesteps, self.shift = timesteps or Uniform(), shift

    def __call__(self, clean: Tensor, noise: Tensor, keys: Tensor) -> Example:
        """See `Objective.__call__`."""
        times = self.shifted(self.timesteps(keys), clean.shape[-2:]).float()
        t = times.reshape(-1, 1, 1, 1)
        noisy = (1 - t) * clean + t * noise
        return Example(noisy, times * self.schedule.config.num_train_timesteps, noise - clean)

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


def objective_for(scheduler: SchedulerMixin) -> Objective:
    """What a scheduler samples with: flow matching or diffusion, uniform timesteps, no weights."""
    return (FlowMatchingObjective if is_flow_matching(scheduler) else DiffusionObjective)(scheduler)


def is_flow_matching(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler walks straight lines from noise to image."""
    return isinstance(scheduler, FlowMatchEulerDiscreteScheduler | FlowMatchHeunDiscreteScheduler)
