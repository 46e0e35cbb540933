"""What a diffusion model says of a noisy picture: its noise, its velocity or the clean picture itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from diffusers import SchedulerMixin
from torch import Tensor


class PredictionType(ABC):
    """One way of speaking about noisy = signal * clean + sigma * noise, where signal^2 + sigma^2 = 1.

    Pictures are (B, C, h, w); `signal` and `sigma` (B, 1, 1, 1).
    """

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """What is to be said."""

    @abstractmethod
    def clean(self, prediction: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """The clean picture that a prediction speaks of."""

    @abstractmethod
    def min_snr(self, snr: Tensor, gamma: float) -> Tensor:
        """min(SNR, gamma) as a weight of the squared error of what is said: (B,), no NaN at SNR 0."""


class EpsilonPrediction(PredictionType):
    """The noise; Ho et al. 2020. At SNR 0 it tells nothing of the picture."""

    def target(self, clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """The noise."""
        return noise

    def clean(self, prediction: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """See `PredictionType.clean`."""
        return (noisy - sigma * prediction) / signal

    def min_snr(self, snr: Tensor, gamma: float) -> Tensor:
        """min(SNR, gamma) / SNR."""
        return (gamma / snr).clamp_max(1)


class VelocityPrediction(PredictionType):
    """signal * noise - sigma * clean; Salimans and Ho 2022, "Progressive distillation", appendix D."""

    def target(self, clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """The velocity."""
        return signal * noise - sigma * clean

    def clean(self, prediction: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """See `PredictionType.clean`."""
        return signal * noisy - sigma * prediction

    def min_snr(self, snr: Tensor, gamma: float) -> Tensor:
        """min(SNR, gamma) / (SNR + 1)."""
        return snr.clamp_max(gamma) / (snr + 1)


class SamplePrediction(PredictionType):
    """The clean picture."""

    def target(self, clean: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """The clean picture."""
        return clean

    def clean(self, prediction: Tensor, noisy: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """The prediction."""
        return prediction

    def min_snr(self, snr: Tensor, gamma: float) -> Tensor:
        """min(SNR, gamma)."""
        return snr.clamp_max(gamma)


def prediction_type(scheduler: SchedulerMixin) -> PredictionType:
    """What a denoiser of this diffusion scheduler says.

    Raises:
        ValueError: another `prediction_type` than epsilon, v_prediction or sample, or epsilon where the last timestep
            is pure noise (Lin et al. 2023, "Common diffusion noise schedules are flawed", section 3.2).
    """
    known: dict[str, Callable[[], PredictionType]] = {
        "epsilon": EpsilonPrediction,
        "v_prediction": VelocityPrediction,
        "sample": SamplePrediction,
    }
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in known:
        raise ValueError(f"scheduler.prediction_type must be one of {', '.join(known)}; got {kind!r}")
    if kind == "epsilon" and scheduler.config.get("rescale_betas_zero_snr"):
        raise ValueError(
            "scheduler.rescale_betas_zero_snr expects prediction_type v_prediction or sample, got epsilon: in pure "
            "noise, the noise tells nothing of the picture"
        )
    return known[kind]()
