"""Scores of fills, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from inpaint_module.metrics.scores import (
    FillScores,
    flat_scores,
    masked_ssim,
    mean_scores,
    score_fills,
)
from inpaint_module.sampling import InpaintedImages, composite


def test_scores_by_hand() -> None:
    image, hole, grown = torch.full((1, 3, 16, 16), 0.25), torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    grown[..., 4:12, 4:12], hole[..., 6:10, 6:10] = 1, 1
    inpainted = image + 0.01 + 0.04 * grown + 0.05 * hole  # off by .1 in the hole, .05 around it, .01 beyond
    joined = composite(inpainted, image, grown)
    result = InpaintedImages(image, hole > 0.5, grown, image, inpainted, joined)
    scores = score_fills(result, image.clone(), lambda first, second: (first - second).abs().sum()[None])
    assert scores["model"].psnr_inside == pytest.approx(20, abs=1e-3)
    assert scores["model"].psnr_outside == pytest.approx(40, abs=1e-3)
    assert scores["model"].seam == pytest.approx(0.05, abs=1e-6)
    assert scores["model"].ssim_inside == masked_ssim(joined, image, hole).item() < 1
    assert scores["vae"] == pytest.approx(FillScores(100, 100, 1, 0, 0))
    assert scores["mean_colour"][0] == 100
    assert scores["grey"][0] == pytest.approx(12.041, abs=1e-3)
    assert scores["grey"].seam == pytest.approx(0.25)
    assert math.isnan(scores["grey"].psnr_outside)


def test_means_leave_out_what_is_not_there() -> None:
    nan = math.nan
    mean = mean_scores([FillScores(10, nan, 0.5, 0.1), FillScores(20, 30, nan, 0.3)])
    assert mean[:4] == pytest.approx((15, 30, 0.5, 0.2))
    assert math.isnan(mean.lpips)
    named = flat_scores({"model": mean, "grey": FillScores(1, nan, nan, nan)})
    assert named == {"psnr_inside": 15, "psnr_outside": 30, "ssim_inside": 0.5, "seam": 0.2, "psnr_inside_grey": 1}
