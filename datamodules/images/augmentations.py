"""Augmentations: torchvision's transforms v2 after crop and flip, with draws that are functions of (seed, position)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.images.draws import position_seed
from inpaint_module.randomness import Stream

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
        raise ValueError(f"data.transforms: expected {what} {like.dtype} {tuple(like.shape)} from {name}, got {found}")


def _apply(transform: nn.Module, parts: list[Tensor]) -> list[Tensor]:
    """One transform over an image, and a mask if there is one."""
    name = type(transform).__name__
    out = transform(*parts)
    out = list(out) if isinstance(out, (tuple, list)) else [out]
    if len(out) != len(parts):
        raise ValueError(f"data.transforms: expected image and mask from {name}, got {len(out)} of {len(parts)}")
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

    def __call__(self, image: Tensor, mask: Tensor | None, position: int) -> Augmented:
        """As `augment`, the same bits in any worker, order or restart."""
        if not self.transforms:
            return Augmented(image, mask)
        with seeded(position_seed(self.seed, position, Stream.CROP, _BRANCH)):
            return augment(image, mask, self.transforms)
