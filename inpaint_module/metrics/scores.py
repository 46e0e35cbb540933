"""What a fill is worth inside a mask, outside it and at its border: PSNR, structure, the jump at the seam.

Over a validation, and of single photos for the report. Beside a model's scores stand those of fills that need no model,
and of what the autoencoder alone would do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.functional.image import structural_similarity_index_measure

from inpaint_module.fills import mean_colour_fill, smooth_fill, telea_fill
from inpaint_module.morphology import mask_leak, mask_overcover, reduce_mask
from inpaint_module.sampling import InpaintedImages, composite

_SMALLEST = 6  # SSIM's window of 11 pixels is reflected 5 beyond the picture


class MaskedPSNR(Metric):
    """Peak signal-to-noise ratio over the chosen pixels of each image, in dB, averaged over images.

    Images in which nothing is chosen do not count. Sums are kept in float64 and reduced over ranks, so that the result
    does not depend on how images are split.

    Example:
        >>> metric, hole = MaskedPSNR(), torch.zeros(1, 1, 2, 2)
        >>> hole[..., 0] = 1
        >>> metric.update(torch.full((1, 3, 2, 2), 0.6), torch.full((1, 3, 2, 2), 0.5), hole, torch.ones(1))
        >>> round(metric.compute().item(), 3)
        20.0
    """

    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, image: Tensor, chosen: Tensor, weight: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: float (B, 3, H, W) in 0..1.
            image: the truth, alike.
            chosen: (B, 1, H, W), non-zero where pixels count.
            weight: (B,), 0 leaves an image out.
        """
        chosen = (chosen != 0).double()
        error = ((prediction - image).double().square() * chosen).sum((1, 2, 3))
        number = 3 * chosen.sum((1, 2, 3))
        decibel = -10 * torch.log10((error / number.clamp_min(1)).clamp_min(1e-10))
        counted = weight.double() * (number > 0)
        self.total += (decibel * counted).sum()
        self.count += counted.sum()

    def compute(self) -> Tensor:
        """Mean over images, float32 (); NaN if none counted."""
        return (self.total / self.count).float()


def seam_error(filled: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """How much a fill's step across the border of the mask differs from the truth's: 0 for a seam that is not there.

    Over all pairs of pixels side by side or one above the other, one inside the mask and one outside, the mean of
    |jump of `filled` - jump of `image`|.

    Args:
        filled: float (B, 3, H, W) in 0..1. If it is a composite, a jump can only be off by its inner pixel, and the
            error lies in 0..1; else in 0..2.
        image: the truth, alike.
        mask: (B, 1, H, W), over 0.5 inside; the one that the composite was made with.

    Returns:
        float64 (B,); NaN where the mask has no border.
    """
    inside, error = mask > 0.5, (filled - image).double()
    total = count = error.new_zeros(len(error))
    for axis in (2, 3):
        border = inside.diff(dim=axis)
        jump = error.diff(dim=axis).abs().mean(1, keepdim=True)
        total = total + torch.where(border, jump, 0).sum((1, 2, 3))
        count = count + border.sum((1, 2, 3))
    return total / count


def masked_ssim(filled: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004; Gaussian window of 11 pixels), its map averaged inside a mask.

    Args:
        filled: float (B, 3, H, W) in 0..1. Windows near the border look outside the mask: give a composite.
        image: the truth, alike.
        mask: (B, 1, H, W), over 0.5 inside.

    Returns:
        float64 (B,) in -1..1; NaN where the mask is empty.

    Raises:
        ValueError: sides below 6 pixels.
    """
    if min(image.shape[-2:]) < _SMALLEST:
        raise ValueError(f"SSIM expects pictures of at least 6 x 6 pixels, got {image.shape[-2]} x {image.shape[-1]}")
    found = structural_similarity_index_measure(filled, image, data_range=1.0, reduction="none", return_full_image=True)
    inside, per_pixel = (mask > 0.5).double(), cast(tuple[Tensor, Tensor], found)[1].double().mean(1, keepdim=True)
    return (per_pixel * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3))


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
