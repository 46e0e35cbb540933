"""One of several generators per mask."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import MaskGenerator, checked_share, no_masks, paint_where


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
        chances = [1 / len(generators)] * len(generators) if probabilities is None else list(probabilities)
        if len(chances) != len(generators) or min(chances) < 0 or abs(sum(chances) - 1) > 1e-6:
            raise ValueError(f"probabilities must be {len(generators)} numbers >= 0 that sum to 1; got {chances}")
        self.parts, self.probabilities = generators, chances

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        lot = randomness.draw(keys, 1)[:, 0]
        bounds = [0, *(round(total * 2**32) for total in accumulate(self.probabilities[:-1])), 2**32]
        masks = no_masks(keys, height, width)
        for branch, generator in enumerate(self.parts):
            chosen = (lot >= bounds[branch]) & (lot < bounds[branch + 1])
            masks = paint_where(chosen, generator, randomness.fork(keys, branch), masks)
        return masks


class Full(MaskGenerator):
    """The whole image is masked, for every key."""

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        return torch.ones(len(keys), 1, height, width, dtype=torch.bool, device=keys.device)


class FullWithProbability(Mixture):
    """A generator's masks, of which some become the whole image, as in Stable Diffusion's inpainting training.

    Args:
        generator: what paints the other masks.
        probability: of the full mask, 0..1.

    Raises:
        ValueError: a probability beyond 0..1.
    """

    def __init__(self, generator: MaskGenerator, probability: float = 0.25):
        checked_share(probability=probability)
        super().__init__([Full(), generator], [probability, 1 - probability])
