"""Masks that change while the training goes on."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise

import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import MaskGenerator, checked_at_least, paint_where


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
