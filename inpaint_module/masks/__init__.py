"""Random masks, painted in batch on the device where the images are."""

from inpaint_module.masks.boxes import Boxes
from inpaint_module.masks.generator import MaskGenerator
from inpaint_module.masks.mixture import Mixture
from inpaint_module.masks.strokes import Strokes

__all__ = ["Boxes", "MaskGenerator", "Mixture", "Strokes"]
