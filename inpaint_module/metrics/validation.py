"""What validation measures: fills against the truth, and what the latent grid makes of the mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from inpaint_module.metrics.masked_psnr import MaskedPSNR
from inpaint_module.morphology import mask_leak, mask_overcover, reduce_mask
from inpaint_module.sampling import InpaintedImages, mean_colour_fill


class FillMetrics(nn.ModuleDict):
    """PSNR inside the hole and outside the grown mask, and inside for two plain fills: grey and the mean colour."""

    NAMES = ("psnr_inside", "psnr_outside", "psnr_inside_grey", "psnr_inside_mean_colour")

    def __init__(self) -> None:
        super().__init__({name: MaskedPSNR() for name in self.NAMES})

    def add(self, result: InpaintedImages, weight: Tensor) -> dict[str, Any]:
        """Add a batch, whose images of weight 0 (B,) do not count; the metrics by name."""
        grey = torch.full_like(result.image, 0.5)
        mean_colour = mean_colour_fill(result.image, result.mask)
        inputs = {
            "psnr_inside": (result.inpainted, result.mask),
            "psnr_outside": (result.inpainted, 1 - result.noise_mask),
            "psnr_inside_grey": (grey, result.mask),
            "psnr_inside_mean_colour": (mean_colour, result.mask),
        }
        for name, (filled, chosen) in inputs.items():
            self[name](filled, result.image, chosen, weight)
        return dict(self.items())


class GridLosses(nn.ModuleDict):
    """Mean share of the mask that the latent grid loses, and that it adds.

    Args:
        ratio: pixels per latent cell and side.
        reduce: the layout's way from pixels to cells.
    """

    def __init__(self, ratio: int, reduce: str) -> None:
        super().__init__({"mask_leak": MeanMetric(), "mask_overcover": MeanMetric()})
        self.ratio, self.reduce = ratio, reduce

    def add(self, noise_mask: Tensor, weight: Tensor) -> dict[str, Any]:
        """Add the grown masks (B, 1, H, W) of weight (B,) above 0; nothing where every pixel is told."""
        if self.reduce == "space-to-depth":
            return {}
        cells = reduce_mask(noise_mask, self.ratio, self.reduce)
        self["mask_leak"](mask_leak(noise_mask, cells), weight)
        self["mask_overcover"](mask_overcover(noise_mask, cells), weight)
        return dict(self.items())
