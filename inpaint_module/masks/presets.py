"""Published mask recipes by name."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

from inpaint_module.masks.boxes import Boxes, Grid, KeepEvery, KeepRegion, Outpaint
from inpaint_module.masks.composition import CoverageBetween, FullWithProbability, Mixture, Union
from inpaint_module.masks.generator import MaskGenerator
from inpaint_module.masks.shapes import FreeForm, Lines, Polygon
from inpaint_module.masks.smooth import Blob, Cloud
from inpaint_module.masks.strokes import Strokes


def preset(name: str, *, in_pixels: bool = False) -> MaskGenerator:
    """A published mask recipe.

    | name | what it is, at 512 pixels |
    |---|---|
    | lama-thin, -medium, -thick | LaMa's for evaluation (Suvorov et al. 2022): brush chains; but for thin also boxes |
    | lama-train | LaMa's for training, "abl-04-256-mh-dist", at 256 pixels: chains of wide brushes or boxes |
    | sd | Stable Diffusion 1.5 and 2 inpainting, "512train-large": wide lines or boxes, 25 % full |
    | sdxl | SDXL inpainting: boxes, short fat brushes or outpainting, 25 % full |
    | deepfill | DeepFill v2 free-form strokes (Yu et al. 2019); of 256 pixels |
    | comodgan | CoModGAN (Zhao et al. 2021): 0..9 boxes of up to half the image, 0..4 of up to all, 0..19 strokes |
    | mat | MAT (Li et al. 2022), its file for 512 pixels: 0..4 boxes of up to half, 0..2 of up to all, 0..8 strokes |
    | brushnet | BrushNet's (Ju et al. 2024): 1..3 strokes of 0..7 turns, 128 of 512 pixels wide, never none |
    | outpaint | LaMa's: strips of 4..25 % along the sides |
    | cloud, blob, polygon | fractal noise (10..60 %), warped ellipses (20..80 %), one or two polygons (10..60 %) |
    | repaint-half, -expand, -every-second-line, -superres | RePaint's test masks (Lugmayr et al. 2022) |
    | boxes | 1..4 boxes of 12 to 58 % of the short side, off the border (`Boxes()`) |
    | grid | LaMa's super-resolution grid |

    Sizes scale with the image: at 1024 pixels masks cover as much of it as at 512. Most of the originals paint in
    pixels instead, whatever the size of the image. So "sdxl" at 1024 covers 55 % here, and 42 % in its script, which
    trains at 1024; "deepfill" at 512 covers 15 % here and 8.5 % in its code. With `in_pixels` they are as there.

    LaMa's code draws one stroke more than its configs say, and its published sets hold no mask over half of the image,
    which `CoverageBetween(preset("lama-medium"), (0.0, 0.5))` drops too.

    Args:
        name: one of `presets()`.
        in_pixels: sizes are pixels of any image, as in the originals, not of one of 512 (deepfill and lama-train: 256).
            What an original gives as a share of the image stays one, and a number of pixels per line of a grid too.

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
        likely = "".join(f"; did you mean {known}?" for known in get_close_matches(name, _PRESETS, n=1))
        raise ValueError(f"unknown mask preset {name!r}; known are {', '.join(_PRESETS)}{likely}")
    recipe, resolution = _PRESETS[name]
    return recipe(None if in_pixels else resolution)


def presets() -> tuple[str, ...]:
    """The names that `preset` knows."""
    return tuple(_PRESETS)


def _lama_thin(resolution: int | None) -> MaskGenerator:
    return Strokes((4, 71), (10, 109), (5, 24), resolution=resolution, opencv=True)


def _lama_medium(resolution: int | None) -> MaskGenerator:
    strokes = Strokes((4, 11), (10, 209), (5, 104), resolution=resolution, opencv=True)
    return Mixture([strokes, Boxes((1, 5), (30, 150), margin=0, resolution=resolution)], [1 / 1.3, 0.3 / 1.3])


def _lama_thick(resolution: int | None) -> MaskGenerator:
    strokes = Strokes((1, 6), (10, 459), (5, 254), resolution=resolution, opencv=True)
    return Mixture([strokes, Boxes((1, 4), (30, 300), margin=10, resolution=resolution)], [1 / 1.3, 0.3 / 1.3])


def _lama_train(resolution: int | None) -> MaskGenerator:
    strokes = Strokes((1, 6), (10, 209), (5, 104), resolution=resolution, opencv=True)
    return Mixture([strokes, Boxes((1, 4), (30, 150), margin=10, resolution=resolution)])


def _sd(resolution: int | None) -> MaskGenerator:
    boxes = Boxes((1, 3), (75, 449), margin=10, rounded=0.5, corner=(0, 59), resolution=resolution)
    return FullWithProbability(Mixture([Lines((1, 4), (10, 449), (5, 399), resolution=resolution), boxes]), 0.25)


def _sdxl(resolution: int | None) -> MaskGenerator:
    boxes = Boxes((1, 2), (100, 511), margin=10, resolution=resolution)
    strokes = Strokes((1, 2), (10, 69), (5, 260), discs=1 / 3, squares=1 / 3, resolution=resolution, opencv=True)
    return FullWithProbability(Mixture([boxes, strokes, Outpaint((0.04, 0.5))]), 0.25)


def _boxes_and_brushes(small: int, large: int, brushes: int, resolution: int | None) -> MaskGenerator:
    """For hole ratios in 0..1, of which both codes refuse the ends; sides are uniform from nothing to the most."""
    halves = Boxes((0, small), (1, 255), margin=0, hang=0.5, resolution=512)  # of the image, also where widths are not
    wholes = Boxes((0, large), (1, 511), margin=0, hang=0.5, resolution=512)
    strokes = FreeForm((0, brushes), (4, 17), (12, 47), resolution=resolution)
    return CoverageBetween(Union([halves, wholes, strokes]), (0.0, 1.0), tries=2)


def _polygon() -> MaskGenerator:
    """One polygon, or for a third of the masks the union of two."""
    return CoverageBetween(Mixture([Polygon(), Union([Polygon(), Polygon()])], [2 / 3, 1 / 3]), (0.1, 0.6))


# the recipe, given the short side at which its sizes hold, and that of the original
_PRESETS: dict[str, tuple[Callable[[int | None], MaskGenerator], int | None]] = {
    "lama-thin": (_lama_thin, 512),
    "lama-medium": (_lama_medium, 512),
    "lama-thick": (_lama_thick, 512),
    "lama-train": (_lama_train, 256),
    "sd": (_sd, 512),
    "sdxl": (_sdxl, 512),
    "deepfill": (lambda resolution: FreeForm(resolution=resolution), 256),
    "comodgan": (partial(_boxes_and_brushes, 9, 4, 19), 512),
    "mat": (partial(_boxes_and_brushes, 4, 2, 8), 512),
    "outpaint": (lambda _: Outpaint(), None),
    "brushnet": (lambda resolution: FreeForm((1, 3), (0, 7), (128, 128), resolution=resolution), 512),
    "cloud": (lambda _: Cloud(), None),
    "blob": (lambda _: Blob(), None),
    "polygon": (lambda _: _polygon(), None),
    "repaint-half": (lambda _: KeepRegion(width=0.5, height=1.0), None),
    "repaint-expand": (lambda _: KeepRegion(0.375, 0.375, 0.25, 0.25), None),
    "repaint-every-second-line": (lambda _: KeepEvery(2, 1), None),
    "repaint-superres": (lambda _: KeepEvery(2, 2), None),
    "boxes": (lambda resolution: Boxes(resolution=resolution), 256),
    "grid": (lambda _: Grid(), None),
}
