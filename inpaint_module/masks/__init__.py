"""Random masks, painted in batch on the device where the images are."""

from inpaint_module.masks.boxes import Boxes, Grid, KeepEvery, KeepRegion, Outpaint
from inpaint_module.masks.composition import (
    CoverageBetween,
    Curriculum,
    Full,
    FullWithProbability,
    Grown,
    Intersection,
    Inverted,
    Mixture,
    Union,
)
from inpaint_module.masks.generator import CudaGraphed, MaskGenerator, graph_masks
from inpaint_module.masks.presets import preset, presets
from inpaint_module.masks.shapes import FreeForm, Lines, Polygon
from inpaint_module.masks.smooth import Blob, Cloud
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
    "graph_masks",
    "preset",
    "presets",
]
