"""Where to crop: the largest centred rectangle, or a random one that is a function of the draws alone.

Crops lie on whole pixels. Of an image that is to shrink to a half, a quarter or an eighth, or beyond, they lie on
every second, fourth or eighth: a JPEG decoded at that size has them on whole pixels too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from datamodules.images.draws import position_draws
from inpaint_module.randomness import Stream

Box = tuple[int, int, int, int]


class Crop(NamedTuple):
    """`box` is (left, top, right, bottom) in pixels of the upright image; `flip` mirrors it left to right."""

    box: Box
    flip: bool


def largest_box(width: int, height: int, aspect: float) -> tuple[float, float]:
    """Width and height of the largest rectangle of `aspect` (width / height) inside the image, in pixels."""
    return (width, width / aspect) if width < height * aspect else (height * aspect, height)


def grid_of(width: float, size: tuple[int, int]) -> int:
    """The grid for a crop of that width and a target (H, W): 8, 4, 2 or 1 pixels, at most what becomes one."""
    return next((step for step in (8, 4, 2) if width >= step * size[1]), 1)


def _on_grid(
    frame: tuple[int, int], crop: tuple[float, float], size: tuple[int, int], place: Sequence[float], flip: bool
) -> Crop:
    """A crop of about that width and height, at a share (0..1) of the places on its grid that it can have."""
    step = grid_of(crop[0], size)
    cells = [max(1, int(side / step + 1e-6)) for side in crop]
    left, top = (
        int(share * (length // step - count + 1)) * step
        for share, length, count in zip(place, frame, cells, strict=True)
    )
    return Crop((left, top, left + cells[0] * step, top + cells[1] * step), flip)


def centre_crop(width: int, height: int, size: tuple[int, int]) -> Crop:
    """The largest centred rectangle of the aspect of `size` (H, W).

    Example:
        >>> centre_crop(300, 200, (100, 100)).box
        (50, 0, 250, 200)
    """
    return _on_grid((width, height), largest_box(width, height, size[1] / size[0]), size, (0.5, 0.5), flip=False)


def random_crop(
    width: int, height: int, size: tuple[int, int], draws: Sequence[float], min_scale: float, flip: float
) -> Crop:
    """A rectangle of the aspect of `size` (H, W), placed anywhere in the image.

    Its side is `min_scale` to 1 of the largest that fits, but never so small that the crop would be enlarged.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        size: the target, (H, W) pixels.
        draws: four numbers in [0, 1): scale, left, top, flip.
        min_scale: the smallest side, as a share of the largest that fits.
        flip: the probability of a mirrored crop.
    """
    w, h = largest_box(width, height, size[1] / size[0])
    low = min(1.0, max(min_scale, size[1] / w))
    scale = low + draws[0] * (1 - low)
    return _on_grid((width, height), (w * scale, h * scale), size, draws[1:3], flip=draws[3] < flip)


def crop_draws(seed: int, position: int) -> list[float]:
    """The four numbers in [0, 1) of `random_crop` for one position."""
    return position_draws(seed, position, Stream.CROP, 3) + position_draws(seed, position, Stream.FLIP, 1)
