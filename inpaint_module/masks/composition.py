"""Generators made of generators: one of several, sets of pixels, bounds of coverage, growth; no mask is empty by it."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from inpaint_module import randomness
from inpaint_module.masks.generator import (
    MaskGenerator,
    cheap_to_read,
    checked_at_least,
    checked_range,
    checked_share,
    no_masks,
    paint_where,
    unless_empty,
)
from inpaint_module.morphology import DilationPlan, Run, dilate


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
            masks = paint_where(chosen, generator, randomness.fold_in(keys, branch), masks)
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
        masks = self.parts[self._stage](randomness.fold_in(keys, self._stage), height, width)
        if self._stage + 1 == len(self.parts):
            return masks
        later = randomness.draw(keys, 1)[:, 0] < self._later
        return paint_where(later, self.parts[self._stage + 1], randomness.fold_in(keys, self._stage + 1), masks)


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
        masks = self.parts[0](randomness.fold_in(keys, 0), height, width)
        for branch, generator in enumerate(self.parts[1:], start=1):
            masks = masks | generator(randomness.fold_in(keys, branch), height, width)
        return masks


class Intersection(SetOperation):
    """The pixels that all of the generators mask; where there is none, what the first one masks."""

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        first = masks = self.parts[0](randomness.fold_in(keys, 0), height, width)
        for branch, generator in enumerate(self.parts[1:], start=1):
            masks = masks & generator(randomness.fold_in(keys, branch), height, width)
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
        masks = self.parts[0](randomness.fold_in(keys, 0), height, width)
        chosen = randomness.draw(keys, 1) < round(self.probability * 2**32)
        return unless_empty(masks ^ chosen[:, :, None, None], masks)


class CoverageBetween(MaskGenerator):
    """A generator's masks that cover a share of the image within bounds, and at least one pixel.

    A mask out of bounds is drawn again, up to `tries` times in all. What then still does not fit is made to: of too
    large a mask, only as many pixels as are allowed are kept, from the top or from the bottom; to one too small, as
    many are added as it lacks. On a GPU all tries are painted, since to ask whether they are needed would wait for it.

    Args:
        generator: whose masks are bounded.
        share: least and greatest masked part of the image, within 0..1.
        tries: how often a mask is drawn before it is fixed.

    Raises:
        ValueError: a bound out of order or beyond 0..1, no try, or, when painting, bounds that no pixel count meets.
    """

    def __init__(self, generator: MaskGenerator, share: tuple[float, float] = (0.1, 0.6), *, tries: int = 4):
        checked_range("share", share, 0, 1)
        checked_at_least(1, tries=tries)
        self.parts, self.share, self.tries = (generator,), share, tries

    def paint(self, keys: Tensor, height: int, width: int) -> Tensor:
        """See `MaskGenerator`."""
        least = max(1, math.ceil(self.share[0] * height * width - 1e-6))
        most = math.floor(self.share[1] * height * width + 1e-6)
        if least > most:
            raise ValueError(
                f"share {list(self.share)} of {height} x {width} pixels holds no whole number of pixels above 0; "
                "widen the bounds"
            )
        masks, pending = no_masks(keys, height, width), torch.ones_like(keys, dtype=torch.bool)
        for attempt in range(self.tries):
            masks = paint_where(pending, self.parts[0], randomness.fold_in(keys, attempt), masks)
            covered = _pixels(masks)
            pending = (covered < least) | (covered > most)
        if cheap_to_read(pending) and not pending.any():
            return masks
        return _fixed(masks, covered[:, None], least, most, randomness.draw(keys, 1) < 2**31)


def _pixels(masks: Tensor) -> Tensor:
    """Masked pixels of each mask: bool (B, 1, H, W) -> int32 (B,)."""
    if cheap_to_read(masks):  # 10 times faster than a sum
        return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.int32)
    return masks.flatten(1).sum(1, dtype=torch.int32)


def _fixed(masks: Tensor, covered: Tensor, least: int, most: int, from_top: Tensor) -> Tensor:
    """Masks brought within bounds: bool (B, 1, H, W), int64 (B, 1), pixels, bool (B, 1) -> bool (B, 1, H, W)."""
    hole = masks.flatten(1)
    kept = hole & (_rank(hole, covered, from_top) <= most)
    known = ~hole
    added = known & (_rank(known, hole.shape[1] - covered, from_top) <= least - covered)
    return (kept | added).view_as(masks)


def _rank(chosen: Tensor, number: Tensor, from_top: Tensor) -> Tensor:
    """The place 1, 2, ... of each chosen pixel among all of its mask's, counted from the top or from the bottom."""
    rank = chosen.cumsum(1, dtype=torch.int32)
    return torch.where(from_top, rank, number + 1 - rank)


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
        masks = self.parts[0](randomness.fold_in(keys, 0), height, width)
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
