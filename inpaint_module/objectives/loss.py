"""What a prediction is compared with, the noise, the velocity or the clean picture, and how much an error counts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from torch import Tensor

from inpaint_module.morphology import DilationPlan, dilate, plan_dilation, reduce_mask, square


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


class LossWeights:
    """Weights of the squared error in the hole, outside it, and along its border.

    Two regions split the latent grid: cells that the grown mask touches, and the others. The seam, all cells within
    `seam_cells` of the border between them, counts on top of either.

    Args:
        mask: weight of the hole.
        outside: weight of the rest.
        seam: weight of the seam, beside that of the region it lies in; 0 for none.
        seam_cells: how many latent cells the seam is wide on each side of the border.
        by_area: let each region count by its weight, however large it is: a small hole as much as a large one. The
            loss of a sample is then the mean over its regions, by weight, of their mean errors. A region that a sample
            has not got does not count. False: by weight and area, the plain mean of weighted errors.

    Raises:
        ValueError: a negative weight, all weights zero, or a seam without cells.
    """

    def __init__(
        self,
        mask: float = 1.0,
        outside: float = 1.0,
        seam: float = 0.0,
        *,
        seam_cells: int = 1,
        by_area: bool = False,
    ):
        given = {"mask": mask, "outside": outside, "seam": seam}
        for name, weight in given.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"loss_weights.{name} must be a number from 0 on, got {weight}")
        if not any(given.values()):
            raise ValueError("loss_weights: one of mask, outside and seam must be over 0, got 0 for all")
        if seam_cells < 1:
            raise ValueError(f"loss_weights.seam_cells must be at least 1, got {seam_cells}")
        self.mask, self.outside, self.seam = mask, outside, seam
        self.by_area = by_area
        self._near = plan_dilation(square(2 * seam_cells + 1))

    def __call__(self, noise_mask: Tensor, ratio: int) -> Tensor:
        """What to multiply a squared error (B, C, h, w) with before its mean is taken.

        Args:
            noise_mask: the grown mask (B, 1, H, W), over 0 = inpaint.
            ratio: pixels per latent cell and side.

        Returns:
            float32 (B, 1, H/ratio, W/ratio).
        """
        hole = reduce_mask(noise_mask, ratio, "max") > 0
        regions = torch.stack([hole, ~hole, seam_of(hole, self._near)]).float()
        # one by one: a list would be copied to a GPU, which waits
        weights = torch.stack(
            [regions.new_full((1, 1, 1, 1), weight) for weight in (self.mask, self.outside, self.seam)]
        )
        if self.by_area:
            share = regions.mean((3, 4), keepdim=True)
            present = torch.where(share > 0, weights, 0)
            total = present.sum(0)
            weights = present / torch.where(share > 0, share, 1) / torch.where(total > 0, total, 1)
        return (weights * regions).sum(0)


def seam_of(hole: Tensor, near: Tensor | DilationPlan) -> Tensor:
    """Cells that have both hole and other cells near them, within a kernel: bool (B, 1, h, w) -> the same shape."""
    return dilate(hole, near) & dilate(~hole, near)


class Huber:
    """The pseudo-Huber loss 2 c (sqrt(d^2 + c^2) - c) of an error d, in place of its square.

    Errors well under c count as d^2, those far over it as 2 c |d|, so that spoilt samples pull less; Khrapov et al.
    2024, "Improving diffusion models's data-corruption resistance using scheduled pseudo-Huber loss". Schedules of c
    and their default as in sd-scripts (`--loss_type huber`) and in diffusers' scheduled_huber_loss_training.

    Args:
        c: the threshold, over 0; 0.1 is usual.
        schedule: "constant"; "exponential", which falls from 1 in the clean picture to c in pure noise, c^(t / T); or
            "snr", (1 - c) / (1 + sigma / signal)^2 + c, which needs a scheduler with betas.

    Raises:
        ValueError: a threshold of 0 or less, or another schedule.
    """

    def __init__(self, c: float = 0.1, *, schedule: str = "snr"):
        if not 0 < c < float("inf"):
            raise ValueError(f"huber.c must be a number over 0, got {c}")
        if schedule not in ("constant", "exponential", "snr"):
            raise ValueError(f"huber.schedule must be constant, exponential or snr; got {schedule!r}")
        self.c, self.schedule = c, schedule

    def thresholds(self, times: Tensor, noise_to_signal: Tensor | None = None) -> Tensor:
        """c of each sample.

        Args:
            times: noise times t / T, float (B,) in 0..1.
            noise_to_signal: sigma / signal, float32 (B,); "snr" needs it.

        Returns:
            float32 (B,).
        """
        if self.schedule == "constant":
            return torch.full_like(times, self.c, dtype=torch.float32)
        if self.schedule == "exponential":
            return (times.double() * math.log(self.c)).exp().float()
        assert noise_to_signal is not None
        return (1 - self.c) / (1 + noise_to_signal).square() + self.c


def product(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Weights of samples (B,) times others; None stands for 1."""
    if first is None or second is None:
        return second if first is None else first
    return first * second


def weighted_loss(
    prediction: Tensor,
    target: Tensor,
    cells: Tensor | None = None,
    samples: Tensor | None = None,
    huber: Tensor | None = None,
) -> Tensor:
    """Mean squared error over a batch, or pseudo-Huber loss, float32 ().

    Args:
        prediction: (B, C, h, w), any floating dtype.
        target: float32 (B, C, h, w).
        cells: weight of each latent cell (B or 1, 1, h, w); None for 1.
        samples: weight of each sample (B,); None for 1.
        huber: threshold of each sample, float32 (B,), see `Huber`; None for the squared error.
    """
    if cells is None and samples is None and huber is None:
        return F.mse_loss(prediction.float(), target)
    error = (prediction.float() - target).square()
    if huber is not None:
        c = huber.reshape(-1, 1, 1, 1)
        # the formula without its difference of nearly equal numbers
        error = 2 * c * error / ((error + c * c).sqrt() + c)
    if cells is not None:
        error = error * cells
    means = error.mean((1, 2, 3))
    return (means if samples is None else means * samples).mean()
