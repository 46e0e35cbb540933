"""Published mask recipes by name."""

from __future__ import annotations

from collections.abc import Callable

from inpaint_module.masks.blob import Blob
from inpaint_module.masks.boxes import Boxes
from inpaint_module.masks.cloud import Cloud
from inpaint_module.masks.coverage import CoverageBetween
from inpaint_module.masks.freeform import FreeForm
from inpaint_module.masks.generator import MaskGenerator
from inpaint_module.masks.grid import Grid, KeepEvery
from inpaint_module.masks.lines import Lines
from inpaint_module.masks.mixture import FullWithProbability, Mixture
from inpaint_module.masks.outpaint import Outpaint
from inpaint_module.masks.polygon import Polygon
from inpaint_module.masks.region import KeepRegion
from inpaint_module.masks.setops import Union
from inpaint_module.masks.strokes import Strokes


def preset(name: str) -> MaskGenerator:
    """A published mask recipe.

    | name | what it is, at 512 pixels |
    |---|---|
    | lama-thin, lama-medium, lama-thick | LaMa's (Suvorov et al. 2022): brush chains; in medium and thick also boxes |
    | sd | Stable Diffusion 1.5 and 2 inpainting, "512train-large": wide lines or boxes, 25 % full |
    | sdxl | SDXL inpainting: boxes, short fat brushes or outpainting, 25 % full |
    | deepfill | DeepFill v2 free-form strokes (Yu et al. 2019) |
    | comodgan, mat | CoModGAN (Zhao et al. 2021), MAT (Li et al. 2022): boxes, 0..19 or 0..8 strokes |
    | brushnet | BrushNet's (Ju et al. 2024): 1..3 strokes of 0..7 turns, 128 of 512 pixels wide, never none |
    | outpaint | LaMa's: strips of 4..25 % along the sides |
    | cloud, blob, polygon | fractal noise (10..60 %), warped ellipses (20..80 %), one or two polygons (10..60 %) |
    | repaint-half, -expand, -every-second-line, -superres | RePaint's test masks (Lugmayr et al. 2022) |
    | grid | LaMa's super-resolution grid |

    Args:
        name: one of `presets()`.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> import torch
        >>> from inpaint_module.randomness import Stream, key
        >>> masks = preset("sd")(key(0, torch.arange(3), Stream.MASK), 64, 48)
        >>> masks.shape, masks.dtype
        (torch.Size([3, 1, 64, 48]), torch.bool)
    """
    if name not in _PRESETS:
        raise ValueError(f"unknown mask preset {name!r}; known are {', '.join(_PRESETS)}")
    return _PRESETS[name]()


def presets() -> tuple[str, ...]:
    """The names that `preset` knows."""
    return tuple(_PRESETS)


def _lama_thin() -> MaskGenerator:
    return Strokes((4, 70), (10, 109), (5, 24), resolution=512)


def _lama_medium() -> MaskGenerator:
    strokes = Strokes((4, 10), (10, 209), (5, 104), resolution=512)
    return Mixture([strokes, Boxes((1, 5), (30, 149), margin=0, resolution=512)], [1 / 1.3, 0.3 / 1.3])


def _lama_thick() -> MaskGenerator:
    strokes = Strokes((1, 5), (10, 459), (5, 254), resolution=512)
    return Mixture([strokes, Boxes((1, 4), (30, 299), margin=10, resolution=512)], [1 / 1.3, 0.3 / 1.3])


def _sd() -> MaskGenerator:
    boxes = Boxes((1, 3), (75, 449), margin=10, rounded=0.5, corner=(0, 59), resolution=512)
    return FullWithProbability(Mixture([Lines((1, 4), (10, 449), (5, 399), resolution=512), boxes]), 0.25)


def _sdxl() -> MaskGenerator:
    boxes = Boxes((1, 2), (100, 511), margin=10, resolution=512)
    strokes = Strokes((1, 2), (10, 69), (5, 260), discs=1 / 3, squares=1 / 3, resolution=512)
    return FullWithProbability(Mixture([boxes, strokes, Outpaint((0.04, 0.5))]), 0.25)


def _boxes_and_brushes(most_brushes: int) -> MaskGenerator:
    """CoModGAN's for hole ratios in 0..1, of which it refuses both ends; sides are uniform from nothing to the most."""
    small = Boxes((0, 9), (1, 255), margin=0, hang=0.5, resolution=512)
    large = Boxes((0, 4), (1, 511), margin=0, hang=0.5, resolution=512)
    brushes = FreeForm((0, most_brushes), (4, 17), (12, 47), resolution=512)
    return CoverageBetween(Union([small, large, brushes]), (0.0, 1.0), tries=2)


def _polygon() -> MaskGenerator:
    """One polygon, or for a third of the masks the union of two."""
    return CoverageBetween(Mixture([Polygon(), Union([Polygon(), Polygon()])], [2 / 3, 1 / 3]), (0.1, 0.6))


_PRESETS: dict[str, Callable[[], MaskGenerator]] = {
    "lama-thin": _lama_thin,
    "lama-medium": _lama_medium,
    "lama-thick": _lama_thick,
    "sd": _sd,
    "sdxl": _sdxl,
    "deepfill": FreeForm,
    "comodgan": lambda: _boxes_and_brushes(19),
    "mat": lambda: _boxes_and_brushes(8),
    "outpaint": Outpaint,
    "brushnet": lambda: FreeForm((1, 3), (0, 7), (128, 128), resolution=512),
    "cloud": Cloud,
    "blob": Blob,
    "polygon": _polygon,
    "repaint-half": lambda: KeepRegion(width=0.5, height=1.0),
    "repaint-expand": lambda: KeepRegion(0.375, 0.375, 0.25, 0.25),
    "repaint-every-second-line": lambda: KeepEvery(2, 1),
    "repaint-superres": lambda: KeepEvery(2, 2),
    "grid": Grid,
}
