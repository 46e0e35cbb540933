"""Masks that grow or shrink by a random number of pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import MaskGenerator, checked_at_least, unless_empty
from inpaint_module.morphology import DilationPlan, Run, dilate


class Grown(MaskGenerator):
    """A generator's masks, each grown or shrunk by its own number of pixels.

    Growth by r pixels is a chain of dilations by discs of 1, 2, 4, ... pixels, those of r's binary digits: every
    radius is possible, and a batch of many takes no more work than the greatest. Beyond the border of the image a hole
    goes on, so that shrinking does not pull it from the border. A mask that would vanish stays as it was.

    Args:
        generator: whose masks grow.
        pixels: least and greatest growth at `resolution`; negative numbers shrink.
        resolution: short side of the image at which the numbers hold.

    Raises:
        ValueError: bounds out of order, or a resolution below 1.
    """

    def __init__(self, generator: MaskGenerator, pixels: tuple[int, int] = (-8, 8), *, resolution: int = 512):
        if len(pixels) != 2 or pixels[0] > pixels[1]:
            raise ValueError(f"pixels must be [low, high] with low <= high, got {list(pixels)}")
        checked_at_least(1, resolution=resolution)
        self.parts, self.pixels, self.resolution = (generator,), pixels, resolution

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        masks = self.parts[0](randomness.fork(keys, 0), height, width)
        low, high = (round(bound * min(height, width) / self.resolution) for bound in self.pixels)
        amount = randomness.integers(randomness.draw(keys, 1), low, high + 1)[:, :, None, None]
        shrinks = amount < 0
        grown = masks ^ shrinks
        for digit in range(max(abs(low), abs(high)).bit_length()):
            chosen = (amount.abs() >> digit) & 1 == 1
            grown = torch.where(chosen, dilate(grown, _disc(1 << digit)), grown)
        return unless_empty(grown ^ shrinks, masks)


def _disc(radius: int) -> DilationPlan:
    """The plan of a disc of 2 * radius + 1 pixels across, without a tensor, so that it can be made while compiling."""
    size = 2 * radius + 1
    halves = [math.isqrt(radius * radius - row * row) for row in range(-radius, radius + 1)]
    rows = []
    for half in range(radius + 1):
        places = [row for row in range(size) if halves[row] == half]
        above = [row for row in places if row < radius]
        runs = [group for group in (above, [row for row in places if row > radius]) if group]
        if half == radius:
            runs = [places]
        if runs:
            places_of_row = tuple(Run(group[0], len(group)) for group in runs)
            rows.append(((Run(radius - half, 2 * half + 1),), places_of_row))
    return DilationPlan(size, size, tuple(rows))
