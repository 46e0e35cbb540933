"""Scores of what a model painted into holes: over a validation, and of single photos for the report.

Beside them stand those of fills that need no model, and of what the autoencoder alone would do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics import MeanMetric

from inpaint_module.fills import mean_colour_fill, smooth_fill, telea_fill
from inpaint_module.metrics.masked import MaskedPSNR, masked_ssim, seam_error
from inpaint_module.morphology import mask_leak, mask_overcover, reduce_mask
from inpaint_module.sampling import InpaintedImages, composite

Distance = Callable[[Tensor, Tensor], Tensor]
PLAIN_FILLS = {"smooth": "smooth fill", "telea": "OpenCV's Telea", "mean_colour": "mean colour", "grey": "grey"}


class FillMetrics(nn.ModuleDict):
    """PSNR inside the hole and outside the grown mask, and inside for plain fills: grey, the mean colour, smooth."""

    NAMES = ("psnr_inside", "psnr_outside", "psnr_inside_grey", "psnr_inside_mean_colour", "psnr_inside_smooth")

    def __init__(self) -> None:
        super().__init__({name: MaskedPSNR() for name in self.NAMES})

    def add(self, result: InpaintedImages, weight: Tensor) -> dict[str, Any]:
        """Add a batch, whose images of weight 0 (B,) do not count; the metrics by name."""
        image, mask = result.image, result.mask
        inputs = {
            "psnr_inside": (result.inpainted, mask),
            "psnr_outside": (result.inpainted, 1 - result.noise_mask),
            "psnr_inside_grey": (torch.full_like(image, 0.5), mask),
            "psnr_inside_mean_colour": (mean_colour_fill(image, mask), mask),
            "psnr_inside_smooth": (smooth_fill(image, mask), mask),
        }
        for name, (filled, chosen) in inputs.items():
            self[name](filled, result.image, chosen, weight)
        return dict(self.items())


class LatentMaskMetrics(nn.ModuleDict):
    """Mean share of the mask that is lost on the latent grid, and that the grid adds to it.

    Args:
        ratio: pixels per latent cell and side.
        reduce: the layout's way from pixels to cells.
    """

    def __init__(self, ratio: int, reduce: str) -> None:
        super().__init__({"mask_leak": MeanMetric(), "mask_overcover": MeanMetric()})
        self.ratio, self.reduce = ratio, reduce

    def add(self, noise_mask: Tensor, weight: Tensor) -> dict[str, Any]:
        """Add the grown masks (B, 1, H, W) of weight (B,) above 0; nothing where the layout keeps every pixel."""
        if self.reduce == "space-to-depth":
            return {}
        cells = reduce_mask(noise_mask, self.ratio, self.reduce)
        self["mask_leak"](mask_leak(noise_mask, cells), weight)
        self["mask_overcover"](mask_overcover(noise_mask, cells), weight)
        return dict(self.items())


class FillScores(NamedTuple):
    """How near an inpainted picture is to the photo; NaN where there is nothing to measure.

    Attributes:
        psnr_inside: dB, in the hole.
        psnr_outside: dB, outside the grown mask, of the picture as decoded, before the known pixels are put back.
        ssim_inside: -1..1, in the hole.
        seam: 0..1, at the border of the grown mask, of the composite; 0 is best.
        lpips: learned perceptual distance of the composite to the photo; 0 is best.
    """

    psnr_inside: float
    psnr_outside: float
    ssim_inside: float
    seam: float
    lpips: float = math.nan


class ScoredPhoto(NamedTuple):
    """A photo under one mask: `scores` by name of the fill, see `score_fills`; `pictures` by what they show."""

    key: str
    position: int
    caption: str
    scores: dict[str, FillScores]
    pictures: dict[str, Image.Image]


class ScoredPreset(NamedTuple):
    """Photos under the masks of one preset."""

    name: str
    photos: list[ScoredPhoto]

    def mean(self) -> dict[str, FillScores]:
        """Scores averaged over photos, by name of the fill."""
        return {fill: mean_scores(photo.scores[fill] for photo in self.photos) for fill in self.photos[0].scores}


def score_fills(result: InpaintedImages, round_trip: Tensor, distance: Distance | None = None) -> dict[str, FillScores]:
    """Score a fill, and what to compare it with.

    Args:
        result: one photo, inpainted (B = 1).
        round_trip: float (1, 3, H, W), the photo encoded and decoded: no fill through this autoencoder is better.
        distance: pictures and truth to (B,), such as `LPIPS`; None for no such score.

    Returns:
        Scores of `model`, `vae` (the round trip), and those of PLAIN_FILLS that `plain_fills` makes, which have no
        `psnr_outside`.
    """
    fills = {"model": result.inpainted, "vae": round_trip} | plain_fills(result.image, result.mask)
    scores = {name: score(filled, result, distance) for name, filled in fills.items()}
    for name in scores.keys() & PLAIN_FILLS.keys():
        scores[name] = scores[name]._replace(psnr_outside=math.nan)
    return scores


def plain_fills(image: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What needs no model, by the names of PLAIN_FILLS, Telea's where OpenCV is installed.

    Args:
        image: float (B, 3, H, W) in 0..1.
        mask: (B, 1, H, W), over 0.5 in the hole.
    """
    fills = {
        "smooth": smooth_fill(image, mask),
        "telea": telea_fill(image, mask),
        "mean_colour": mean_colour_fill(image, mask),
        "grey": torch.full_like(image, 0.5),
    }
    return {name: filled for name, filled in fills.items() if filled is not None}


def score(filled: Tensor, result: InpaintedImages, distance: Distance | None = None) -> FillScores:
    """Score one whole picture float (1, 3, H, W) in place of the model's."""
    joined = composite(filled, result.image, result.noise_mask)
    return FillScores(
        psnr_inside=_psnr(filled, result.image, result.mask),
        psnr_outside=_psnr(filled, result.image, 1 - result.noise_mask),
        ssim_inside=masked_ssim(joined, result.image, result.mask).item(),
        seam=seam_error(joined, result.image, result.noise_mask).item(),
        lpips=math.nan if distance is None else distance(joined, result.image).item(),
    )


def _psnr(filled: Tensor, image: Tensor, chosen: Tensor) -> float:
    # called, not computed: computing would wait for the other ranks, which have no report to make
    value: Tensor = MaskedPSNR().to(image.device)(filled, image, chosen, torch.ones(1, device=image.device))
    return value.item()


def mean_scores(scores: Iterable[FillScores]) -> FillScores:
    """Each score's mean over those that are no NaN."""
    return FillScores(*(_mean([value for value in column if value == value]) for column in zip(*scores, strict=True)))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def flat_scores(scores: dict[str, FillScores]) -> dict[str, float]:
    """By name, without NaN: `psnr_inside` for the model, `psnr_inside_grey` and so on for the others."""
    named = {
        score if fill == "model" else f"{score}_{fill}": value
        for fill, row in scores.items()
        for score, value in row._asdict().items()
    }
    return {name: value for name, value in named.items() if value == value}
