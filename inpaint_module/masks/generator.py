"""What every mask generator is: a pure function from integer keys to masks, on the keys' device."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class MaskGenerator(ABC):
    """Random masks, one per key: the same key gives the same mask in any batch, order, process and device.

    Sizes of marks are given in pixels at a stated `resolution` and scale with the short side of the image.
    """

    def __call__(self, keys: Tensor, height: int, width: int) -> Tensor:
        """Draw and paint.

        Args:
            keys: int64 (B,), from `inpaint_module.randomness.key`.
            height: H in pixels.
            width: W in pixels.

        Returns:
            bool (B, 1, H, W) on the keys' device, True = inpaint.

        Raises:
            ValueError: keys of another shape or dtype, or sides below 1.
        """
        if keys.ndim != 1 or keys.dtype != torch.int64:
            raise ValueError(f"keys must be int64 (B,), got {keys.dtype} {tuple(keys.shape)}")
        if height < 1 or width < 1:
            raise ValueError(f"height and width must be at least 1, got {height} x {width}")
        return self.paint(keys, height, width)

    @abstractmethod
    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """The masks of checked keys; what a subclass implements. Shapes as for calling it."""


def checked_range(name: str, bounds: tuple[float, float], lowest: float) -> tuple[float, float]:
    """A (low, high) pair of a generator's configuration.

    Raises:
        ValueError: not two numbers with lowest <= low <= high.
    """
    if len(bounds) != 2 or not lowest <= bounds[0] <= bounds[1]:
        raise ValueError(f"{name} must be [low, high] with {lowest} <= low <= high, got {list(bounds)}")
    return bounds


def scaled(pixels: int, resolution: int, short_side: int) -> int:
    """A size that holds at `resolution` for an image of `short_side`: at least 1 pixel."""
    return max(1, round(pixels * short_side / resolution))
