"""What is measured of an inpainted picture."""

from inpaint_module.metrics.masked import MaskedPSNR, masked_ssim, seam_error
from inpaint_module.metrics.perceptual import LPIPS, PerceptualMetrics
from inpaint_module.metrics.scores import FillMetrics, LatentMaskMetrics, ScoredPhoto, ScoredPreset

__all__ = [
    "LPIPS",
    "FillMetrics",
    "LatentMaskMetrics",
    "MaskedPSNR",
    "PerceptualMetrics",
    "ScoredPhoto",
    "ScoredPreset",
    "masked_ssim",
    "seam_error",
]
