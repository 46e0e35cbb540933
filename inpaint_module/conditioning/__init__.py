"""What a denoiser is told besides the picture."""

from inpaint_module.conditioning.conditioning import Conditioning, NoConditioning

__all__ = ["Conditioning", "NoConditioning"]
