"""Random masks, painted in batch on the device where the images are."""

from importlib import import_module
from typing import TYPE_CHECKING

from inpaint_module.masks.boxes import Boxes
from inpaint_module.masks.coverage import CoverageBetween
from inpaint_module.masks.cuda_graphed import CudaGraphed, graph_masks
from inpaint_module.masks.freeform import FreeForm
from inpaint_module.masks.generator import MaskGenerator
from inpaint_module.masks.grid import Grid, KeepEvery
from inpaint_module.masks.grown import Grown
from inpaint_module.masks.lines import Lines
from inpaint_module.masks.mixture import Curriculum, Full, FullWithProbability, Mixture
from inpaint_module.masks.polygon import Polygon
from inpaint_module.masks.presets import preset, presets
from inpaint_module.masks.regions import KeepRegion, Outpaint
from inpaint_module.masks.setops import Intersection, Inverted, Union
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

if not TYPE_CHECKING:
    _OLD_MODULES = {
        "blob": "smooth",
        "cloud": "smooth",
        "curriculum": "mixture",
        "outpaint": "regions",
        "region": "regions",
    }

    def __getattr__(name: str) -> object:
        """Modules under their names until 0.1, which may stand in a config as `inpaint_module.masks.blob.Blob`."""
        if name not in _OLD_MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}.{_OLD_MODULES[name]}")
