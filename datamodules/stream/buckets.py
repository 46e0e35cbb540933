"""Aspect-ratio buckets: image shapes of nearly the same number of pixels, and which one suits an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bucket_shapes(pixels: int, *, step: int, max_aspect: float) -> list[tuple[int, int]]:
    """Every (H, W) that cannot grow by a step: multiples of `step`, at most `pixels` in area, at most `max_aspect`.

    Sorted by aspect W / H, from tall to wide; empty if not even one step by one step fits.
    """

    def fits(height: int, width: int) -> bool:
        return height * width * step**2 <= pixels and max(height / width, width / height) <= max_aspect

    def is_largest(height: int, width: int) -> bool:
        grown = ((height + 1, width), (height, width + 1), (height + 1, width + 1))
        return fits(height, width) and not any(fits(*shape) for shape in grown)

    sides = range(1, math.isqrt(int(pixels * max_aspect)) // step + 1)
    shapes = [(height * step, width * step) for height in sides for width in sides if is_largest(height, width)]
    return sorted(shapes, key=lambda shape: shape[1] / shape[0])


class Buckets:
    """The shapes near a pixel budget.

    Args:
        image_size: (H, W) pixels, whose product is the budget.
        step: sides are multiples of it, in pixels.
        max_aspect: the longer side is at most this times the shorter.

    Raises:
        ValueError: naming the argument, if no shape fits.
    """

    def __init__(self, image_size: tuple[int, int], *, step: int = 64, max_aspect: float = 2.0) -> None:
        if step < 1:
            raise ValueError(f"data.bucket_step: expected at least 1 pixel, got {step}")
        if not 1 <= max_aspect < math.inf:
            raise ValueError(f"data.bucket_max_aspect: expected at least 1 and finite, got {max_aspect}")
        self.image_size = image_size
        self.step = step
        self.max_aspect = max_aspect
        self.shapes = bucket_shapes(math.prod(image_size), step=step, max_aspect=max_aspect)
        if not self.shapes:
            height, width = image_size
            raise ValueError(
                f"data.image_size: expected at least {step} x {step} pixels in all, one bucket_step each way, "
                f"got {height} x {width}"
            )
        aspects = torch.tensor([width / height for height, width in self.shapes], dtype=torch.float64)
        self._borders = aspects[:-1] * aspects[1:]  # squares of the geometric means: no logarithm, alike everywhere

    def __len__(self) -> int:
        return len(self.shapes)

    def nearest(self, aspects: Tensor) -> Tensor:
        """The number of the shape whose log aspect is nearest; float aspects W / H (B,) -> int64 (B,)."""
        return torch.searchsorted(self._borders, aspects.double().square())
