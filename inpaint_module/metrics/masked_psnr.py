"""Metrics that look inside or outside a mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


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
