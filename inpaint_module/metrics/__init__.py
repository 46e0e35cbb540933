"""What is measured of an inpainted picture."""

from inpaint_module.metrics.perceptual import LPIPS, PerceptualMetrics
from inpaint_module.metrics.scores import (
    FillMetrics,
    LatentMaskMetrics,
    MaskedPSNR,
    ScoredPhoto,
    ScoredPreset,
    masked_ssim,
    seam_error,
)

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


def __getattr__(name: str) -> object:
    if name in ("feature_distance", "FeatureDistance"):  # stood in configs until 0.1
        raise ValueError(
            "inpaint_module.metrics has no FeatureDistance any more: in ValidationReport write lpips: "
            "{class_path: inpaint_module.metrics.LPIPS, init_args: {folder: FOLDER_OF_WEIGHTS}} for feature_distance"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
