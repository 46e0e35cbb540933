"""One of several generators per mask."""

from __future__ import annotations

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import MaskGenerator


class Mixture(MaskGenerator):
    """Each mask comes from one of the generators, drawn by probability per sample, not per batch.

    Args:
        generators: what to choose from.
        probabilities: one number per generator, summing to 1; None for alike.

    Raises:
        ValueError: no generator, another number of probabilities, a negative one, or a sum other than 1.
    """

    def __init__(self, generators: list[MaskGenerator], probabilities: list[float] | None = None):
        if not generators:
            raise ValueError("generators must name at least one mask generator, got none")
        chances = probabilities or [1 / len(generators)] * len(generators)
        if len(chances) != len(generators) or min(chances) < 0 or abs(sum(chances) - 1) > 1e-6:
            raise ValueError(f"probabilities must be {len(generators)} numbers >= 0 that sum to 1; got {chances}")
        self.generators, self.probabilities = generators, chances

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        lot = randomness.uniform(keys, 1)[:, 0]
        masks, threshold = None, 0.0
        for branch, (generator, chance) in enumerate(zip(self.generators, self.probabilities, strict=True)):
            painted = generator(randomness.fork(keys, branch), height, width)
            chosen = (lot >= threshold)[:, None, None, None]
            masks = painted if masks is None else torch.where(chosen, painted, masks)
            threshold += chance
        assert masks is not None
        return masks
