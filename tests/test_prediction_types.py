"""Epsilon, velocity and sample against diffusers and by hand."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from inpaint_module.objectives.loss import (
    EpsilonPrediction,
    PredictionType,
    SamplePrediction,
    VelocityPrediction,
    prediction_type,
)

KINDS = [EpsilonPrediction(), VelocityPrediction(), SamplePrediction()]
CLEAN, NOISE = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: type(k).__name__)
def test_the_target_speaks_of_the_clean_picture(kind: PredictionType) -> None:
    signal = torch.tensor([0.1, 0.6, 0.99]).reshape(3, 1, 1, 1)
    sigma = (1 - signal**2).sqrt()
    target = kind.target(CLEAN, NOISE, signal, sigma)
    found = kind.clean(target, signal * CLEAN + sigma * NOISE, signal, sigma)
    torch.testing.assert_close(found, CLEAN, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "weights"),
    # SNR 0, 1, 4, 5, 20; gamma 5
    [(KINDS[0], [1, 1, 1, 1, 0.25]), (KINDS[1], [0, 0.5, 0.8, 5 / 6, 5 / 21]), (KINDS[2], [0, 1, 4, 5, 5])],
    ids=["epsilon", "v_prediction", "sample"],
)
def test_min_snr_by_hand(kind: PredictionType, weights: list[float]) -> None:
    assert kind.min_snr(torch.tensor([0.0, 1, 4, 5, 20]), 5.0).tolist() == pytest.approx(weights)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: type(k).__name__)
def test_min_snr_weighs_the_error_of_the_clean_picture(kind: PredictionType) -> None:
    """However the model speaks, the same mistake about the clean picture costs min(SNR, gamma) times its square."""
    signal = torch.tensor([0.3, 0.6, 0.98]).reshape(3, 1, 1, 1)
    sigma = (1 - signal**2).sqrt()
    noisy = signal * CLEAN + sigma * NOISE
    said = kind.target(CLEAN, NOISE, signal, sigma) + 0.1
    mistake = (kind.clean(said, noisy, signal, sigma) - CLEAN).square().mean((1, 2, 3))
    snr = (signal / sigma).square().flatten()
    torch.testing.assert_close(kind.min_snr(snr, 5.0) * 0.01, snr.clamp_max(5.0) * mistake, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("epsilon", EpsilonPrediction), ("v_prediction", VelocityPrediction), ("sample", SamplePrediction)],
)
def test_a_scheduler_names_it(name: str, kind: type[PredictionType]) -> None:
    assert type(prediction_type(DDPMScheduler(prediction_type=name))) is kind


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of epsilon, v_prediction, sample; got 'flow'"):
        prediction_type(DDPMScheduler(prediction_type="flow"))


def test_epsilon_at_pure_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="rescale_betas_zero_snr expects prediction_type v_prediction or sample, got"):
        prediction_type(DDPMScheduler(prediction_type="epsilon", rescale_betas_zero_snr=True))
