"""The random numbers of one position, and what is drawn with them: crop, flip, torchvision's transforms v2.

A worker asks for one position at a time, and a torch call costs more than the number: 64 positions are drawn at once.

Crops lie on whole pixels. Of an image that is to shrink to a half, a quarter or an eighth, or beyond, they lie on
every second, fourth or eighth: a JPEG decoded at that size has them on whole pixels too.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_module.randomness import Stream, fold_in, key, uniform

_BLOCK = 64


def _positions(block: int) -> Tensor:
    return torch.arange(block * _BLOCK, (block + 1) * _BLOCK)


@lru_cache(maxsize=32)
def _block(seed: int, block: int, stream: Stream, count: int) -> list[list[float]]:
    return uniform(key(seed, _positions(block), stream), count).tolist()


@lru_cache(maxsize=8)
def _seeds(seed: int, block: int, stream: Stream, branch: int) -> list[int]:
    return fold_in(key(seed, _positions(block), stream), branch).tolist()


def random_numbers(seed: int, position: int, stream: Stream, count: int) -> list[float]:
    """`count` numbers in [0, 1): row `position` of `uniform(key(seed, positions, stream), count)`."""
    return _block(seed, position // _BLOCK, stream, count)[position % _BLOCK]


def position_seed(seed: int, position: int, stream: Stream, branch: int) -> int:
    """63 random bits to seed a generator with: row `position` of `fold_in(key(seed, positions, stream), branch)`."""
    return _seeds(seed, position // _BLOCK, stream, branch)[position % _BLOCK]


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
    counts = [max(1, int(side / step + 1e-6)) for side in crop]
    left, top = (
        int(share * (length // step - count + 1)) * step
        for share, length, count in zip(place, frame, counts, strict=True)
    )
    return Crop((left, top, left + counts[0] * step, top + counts[1] * step), flip)


def centre_crop(width: int, height: int, size: tuple[int, int]) -> Crop:
    """The largest centred rectangle of the aspect of `size` (H, W).

    Example:
        >>> centre_crop(300, 200, (100, 100)).box
        (50, 0, 250, 200)
    """
    return _on_grid((width, height), largest_box(width, height, size[1] / size[0]), size, (0.5, 0.5), flip=False)


def random_crop(
    width: int, height: int, size: tuple[int, int], numbers: Sequence[float], min_scale: float, flip: float
) -> Crop:
    """A rectangle of the aspect of `size` (H, W), placed anywhere in the image.

    Its side is `min_scale` to 1 of the largest that fits, but never so small that the crop would be enlarged.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        size: the target, (H, W) pixels.
        numbers: four in [0, 1): scale, left, top, flip.
        min_scale: the smallest side, as a share of the largest that fits.
        flip: the probability of a mirrored crop.
    """
    w, h = largest_box(width, height, size[1] / size[0])
    low = min(1.0, max(min_scale, size[1] / w))
    scale = low + numbers[0] * (1 - low)
    return _on_grid((width, height), (w * scale, h * scale), size, numbers[1:3], flip=numbers[3] < flip)


def crop_numbers(seed: int, position: int) -> list[float]:
    """The four numbers in [0, 1) of `random_crop` for one position."""
    return random_numbers(seed, position, Stream.CROP, 3) + random_numbers(seed, position, Stream.FLIP, 1)


_BRANCH = 1  # of the crop's key: the crop itself uses the unforked one


class Augmented(NamedTuple):
    """`image` uint8 (3, H, W), and `mask` bool (1, H, W) if there was one."""

    image: Tensor
    mask: Tensor | None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's global generators of torch, numpy and Python for a while; they go on as if nothing was drawn.

    transforms v2 take no generator: all of theirs draw from torch's global one, other people's may use any.
    """
    generator = torch.default_generator
    torch_state, numpy_state, python_state = generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        generator.manual_seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
        random.seed(seed)
        yield
    finally:
        generator.set_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _check(name: str, what: str, got: object, like: Tensor) -> None:
    """Refuse a transform that changes size or dtype: a batch has one shape, and its images one byte per value."""
    if not isinstance(got, Tensor) or got.dtype != like.dtype or got.shape != like.shape:
        found = f"{got.dtype} {tuple(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
        raise ValueError(
            f"data.decoder.transforms: expected {what} {like.dtype} {tuple(like.shape)} from {name}, got {found}"
        )


def _apply(transform: nn.Module, parts: list[Tensor]) -> list[Tensor]:
    """One transform over an image, and a mask if there is one."""
    name = type(transform).__name__
    out = transform(*parts)
    out = list(out) if isinstance(out, (tuple, list)) else [out]
    if len(out) != len(parts):
        raise ValueError(
            f"data.decoder.transforms: expected image and mask from {name}, got {len(out)} of {len(parts)}"
        )
    for what, got, like in zip(("an image", "a mask"), out, parts, strict=False):
        _check(name, what, got, like)
    return out


def augment(image: Tensor, mask: Tensor | None, transforms: Sequence[nn.Module]) -> Augmented:
    """Send an image, and a mask with it, through transforms in turn; geometric ones move both.

    Args:
        image: uint8 (3, H, W).
        mask: bool (1, H, W), 1 = inpaint.
        transforms: of torchvision.transforms.v2.

    Raises:
        ValueError: naming the transform that gives another dtype or size.
    """
    from torchvision import tv_tensors  # takes over a second to import, which samples without transforms can do without

    parts: list[Tensor] = [tv_tensors.Image(image)]
    if mask is not None:
        parts.append(tv_tensors.Mask(mask.to(torch.uint8)))
    for transform in transforms:
        parts = _apply(transform, parts)
    plain = [part.as_subclass(Tensor).contiguous() for part in parts]
    return Augmented(plain[0], plain[1] > 0 if mask is not None else None)


class Augmentations:
    """`augment` with randomness of the sample's position; picklable.

    Args:
        transforms: of torchvision.transforms.v2.
        seed: of the run.
    """

    def __init__(self, transforms: Sequence[nn.Module], *, seed: int) -> None:
        self.transforms = list(transforms)
        self.seed = seed
        self._alike: set[tuple[int, int]] = set()  # sizes of pairs that the transforms were tried on

    def __call__(self, image: Tensor, mask: Tensor | None, position: int) -> Augmented:
        """As `augment`, the same bits in any worker, order or restart."""
        if not self.transforms:
            return Augmented(image, mask)
        with seeded(position_seed(self.seed, position, Stream.CROP, _BRANCH)):
            return augment(image, mask, self.transforms)

    def target(self, target: Tensor, mask: Tensor | None, position: int) -> Tensor:
        """What the image of this position should become, uint8 (3, H, W), with the image's random numbers.

        Raises:
            ValueError: as `augment` and `check_pairs`.
        """
        if self.transforms:
            self.check_pairs((target.shape[-2], target.shape[-1]))
        return self(target, mask, position).image

    def check_pairs(self, size: tuple[int, int]) -> None:
        """Refuse transforms that would not do the same to an image and its target of `size` (H, W).

        Each is tried with 8 seeds on two pictures that differ in one place: if they come out different far from it, as
        where a contrast is taken around each picture's own mean, the model would learn that difference.

        Raises:
            ValueError: naming the transform.
        """
        if size in self._alike:
            return
        for transform in self.transforms:
            for number in range(_TRIES):
                if _differs(transform, size, seed=number):
                    raise ValueError(
                        f"data.decoder.transforms: {type(transform).__name__} changes an image and its target in "
                        "different ways where both are alike, as what it does depends on the whole picture or on "
                        "numbers of its own; the model would learn that as its task. Leave it out with pairs (of "
                        "ColorJitter the contrast)"
                    )
        self._alike.add(size)


_TRIES = 8


def _differs(transform: nn.Module, size: tuple[int, int], seed: int) -> bool:
    """Whether two pictures that are equal but for a block come out different far from it, with the same seed."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    one = torch.randint(64, 192, (3, height, width), dtype=torch.uint8, generator=generator)  # no value is the extreme
    other, where = one.clone(), torch.zeros(1, height, width, dtype=torch.bool)
    block = slice(height // 3, height // 3 + max(1, height // 8)), slice(width // 3, width // 3 + max(1, width // 8))
    other[:, *block], where[:, *block] = 0, True
    other[:, block[0].start, block[1]] = 255
    made = []
    for picture in (one, other):
        with seeded(seed):
            made.append(augment(picture, where, [transform]))
    near = F.max_pool2d(made[0].mask.float(), 2 * (min(size) // 4) + 1, 1, min(size) // 4) > 0  # type: ignore[union-attr]
    return bool(((made[0].image != made[1].image).any(0, keepdim=True) & ~near).any())
