"""What is measured inside a mask, outside it and at its border: PSNR, structure, and the jump at the seam."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

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
