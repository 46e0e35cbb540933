"""Where to crop: the largest centred rectangle, or a random one that is a function of the draws alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from datamodules.draws import position_draws
from inpaint_module.randomness import Stream

Box = tuple[float, float, float, float]


class Crop(NamedTuple):
    """`box` is (left, top, right, bottom) in pixels of the upright image; `flip` mirrors it left to right."""

    box: Box
    flip: bool


def largest_box(width: int, height: int, aspect: float) -> tuple[float, float]:
    """Width and height of the largest rectangle of `aspect` (width / height) inside the image, in pixels."""
    return (width, width / aspect) if width < height * aspect else (height * aspect, height)


def centre_crop(width: int, height: int, size: tuple[int, int]) -> Crop:
    """The largest centred rectangle of the aspect of `size` (H, W)."""
    w, h = largest_box(width, height, size[1] / size[0])
    left, top = (width - w) / 2, (height - h) / 2
    return Crop((left, top, left + w, top + h), flip=False)


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
    w, h = w * scale, h * scale
    left, top = draws[1] * (width - w), draws[2] * (height - h)
    return Crop((left, top, min(left + w, width), min(top + h, height)), flip=draws[3] < flip)


def crop_draws(seed: int, position: int) -> list[float]:
    """The four numbers in [0, 1) of `random_crop` for one position."""
    return position_draws(seed, position, Stream.CROP, 3) + position_draws(seed, position, Stream.FLIP, 1)
