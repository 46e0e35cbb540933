"""Random masks, painted in batch on the device where the images are."""

from inpaint_module.masks.blob import Blob
from inpaint_module.masks.boxes import Boxes
from inpaint_module.masks.cloud import Cloud
from inpaint_module.masks.coverage import CoverageBetween
from inpaint_module.masks.cuda_graphed import CudaGraphed
from inpaint_module.masks.curriculum import Curriculum
from inpaint_module.masks.freeform import FreeForm
from inpaint_module.masks.generator import MaskGenerator
from inpaint_module.masks.grid import Grid, KeepEvery
from inpaint_module.masks.grown import Grown
from inpaint_module.masks.lines import Lines
from inpaint_module.masks.mixture import Full, FullWithProbability, Mixture
from inpaint_module.masks.outpaint import Outpaint
from inpaint_module.masks.polygon import Polygon
from inpaint_module.masks.presets import preset, presets
from inpaint_module.masks.region import KeepRegion
from inpaint_module.masks.setops import Intersection, Inverted, Union
from inpaint_module.masks.strokes import Strokes

__all__ = [
    "Blob",
    "Boxes",
    "Cloud",
    "CoverageBetween",
    "CudaGraphed",
    "Curriculum",
    "FreeForm",
    "Full",
    "FullWithProbability",
    "Grid",
    "Grown",
    "Intersection",
    "Inverted",
    "KeepEvery",
    "KeepRegion",
    "Lines",
    "MaskGenerator",
    "Mixture",
    "Outpaint",
    "Polygon",
    "Strokes",
    "Union",
    "preset",
    "presets",
]
