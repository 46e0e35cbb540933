"""Masks as sets of pixels: union, intersection, inversion.

The inverse of a full mask and an intersection may be empty; there the mask stays what it was before the operation, so
that composed masks are never empty either.
"""

from __future__ import annotations

from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import MaskGenerator, checked_share, unless_empty


class SetOperation(MaskGenerator):
    """Several generators, of whose masks a subclass makes one.

    Args:
        generators: one or more.

    Raises:
        ValueError: no generator.
    """

    def __init__(self, generators: list[MaskGenerator]):
        if not generators:
            raise ValueError("generators must name at least one mask generator, got none")
        self.parts = generators


class Union(SetOperation):
    """Every pixel that any of the generators masks; each draws by itself."""

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        masks = self.parts[0](randomness.fork(keys, 0), height, width)
        for branch, generator in enumerate(self.parts[1:], start=1):
            masks = masks | generator(randomness.fork(keys, branch), height, width)
        return masks


class Intersection(SetOperation):
    """The pixels that all of the generators mask; where there is none, what the first one masks."""

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        first = masks = self.parts[0](randomness.fork(keys, 0), height, width)
        for branch, generator in enumerate(self.parts[1:], start=1):
            masks = masks & generator(randomness.fork(keys, branch), height, width)
        return unless_empty(masks, first)


class Inverted(MaskGenerator):
    """Hole and surroundings change places, but for masks that cover the whole image.

    Args:
        generator: whose masks are inverted.
        probability: that a mask is, drawn per sample.

    Raises:
        ValueError: a probability beyond 0..1.
    """

    def __init__(self, generator: MaskGenerator, probability: float = 1.0):
        checked_share(probability=probability)
        self.parts, self.probability = (generator,), probability

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        masks = self.parts[0](randomness.fork(keys, 0), height, width)
        chosen = randomness.draw(keys, 1) < round(self.probability * 2**32)
        return unless_empty(masks ^ chosen[:, :, None, None], masks)
