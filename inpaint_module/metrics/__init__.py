"""What is measured of an inpainted picture."""

from inpaint_module.metrics.masked_psnr import MaskedPSNR

__all__ = ["MaskedPSNR"]
