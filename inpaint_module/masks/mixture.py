"""One of several generators per mask: by chance, or by how far the training is."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import MaskGenerator, checked_at_least, checked_share, no_masks, paint_where


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


class Curriculum(MaskGenerator):
    """From one generator to the next over the steps of the training.

    At `steps[i]` all masks come from `generators[i]`; between two of them, the share of the later one rises linearly,
    drawn per sample. Masks are thus a function of (key, step): whoever runs the training calls `set_step` before every
    step, on every rank, with the number of optimizer steps so far (`trainer.global_step`), which a resumed run knows
    too. Nothing is counted here, so that nothing needs saving; before the first call the step is 0.

    Args:
        generators: one or more, in their order.
        steps: the step of each, strictly rising from 0.

    Raises:
        ValueError: no generator, other than one step for each, steps that do not rise from 0, or a negative step.
    """

    def __init__(self, generators: list[MaskGenerator], steps: list[int]):
        if not generators or len(steps) != len(generators):
            raise ValueError(f"steps must be one per generator, got {len(steps)} for {len(generators)} generators")
        if steps[0] != 0 or any(a >= b for a, b in pairwise(steps)):
            raise ValueError(f"steps must rise from 0, got {list(steps)}")
        self.parts, self.steps = generators, list(steps)
        self.set_step(0)

    def set_step(self, step: int) -> None:
        """See `MaskGenerator`."""
        checked_at_least(0, step=step)
        super().set_step(step)
        self.step = step
        self._stage = bisect_right(self.steps, step) - 1
        share = 0.0
        if self._stage + 1 < len(self.steps):
            begin, end = self.steps[self._stage : self._stage + 2]
            share = (step - begin) / (end - begin)
        # a tensor, since a number that changes with every step would make torch.compile compile at every step
        self._later = torch.tensor(round(share * 2**32))

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        masks = self.parts[self._stage](randomness.fork(keys, self._stage), height, width)
        if self._stage + 1 == len(self.parts):
            return masks
        later = randomness.draw(keys, 1)[:, 0] < self._later
        return paint_where(later, self.parts[self._stage + 1], randomness.fork(keys, self._stage + 1), masks)
