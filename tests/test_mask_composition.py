"""Mask generators made of others: mixtures, set operations, growth, bounds on coverage, curricula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from mask_cases import KEYS, MANY
from torch import Tensor

from inpaint_module.masks import (
    Boxes,
    CoverageBetween,
    Curriculum,
    Full,
    FullWithProbability,
    Grown,
    Intersection,
    Inverted,
    KeepEvery,
    KeepRegion,
    MaskGenerator,
    Mixture,
    Outpaint,
    Union,
    preset,
)
from inpaint_module.morphology import dilate


def test_mixture_draws_per_sample() -> None:
    small, large = Boxes((1, 1), (4, 4), margin=0, resolution=16), Boxes((1, 1), (8, 8), margin=0, resolution=16)
    area = Mixture([small, large], [0.25, 0.75])(MANY, 16, 16).sum((1, 2, 3))
    assert set(area.tolist()) == {16, 64}
    assert abs((area == 16).float().mean().item() - 0.25) < 0.03


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_full_masks(probability: float) -> None:
    full = FullWithProbability(Boxes(), probability)(MANY, 16, 16).flatten(1).all(1).float().mean()
    assert abs(full - probability) < 0.03 * (0 < probability < 1) + 1e-6


def test_set_operations() -> None:
    left, right = KeepRegion(0.5, 0, 0.5, 1), KeepRegion(0, 0, 0.5, 1)  # mask the left half, and the right one
    top = KeepRegion(0, 0.5, 1, 0.5)
    both = left(KEYS, 8, 8) & top(KEYS, 8, 8)
    assert Union([left, right])(KEYS, 8, 8).all()
    assert torch.equal(Intersection([left, top])(KEYS, 8, 8), both)
    assert torch.equal(Intersection([left, right])(KEYS, 8, 8), left(KEYS, 8, 8))  # else it would be empty
    assert torch.equal(Inverted(left)(KEYS, 8, 8), right(KEYS, 8, 8))
    assert Inverted(Full())(KEYS, 8, 8).all()


def test_parts_draw_by_themselves() -> None:
    assert not torch.equal(Union([Boxes(), Boxes()])(KEYS, 64, 64), Boxes()(KEYS, 64, 64))


def test_growth_is_a_chain_of_discs() -> None:
    masks = Union([preset("lama-medium")])(KEYS, 128, 128)
    grown = Grown(preset("lama-medium"), (3, 3), resolution=128)(KEYS, 128, 128)
    assert torch.equal(grown, dilate(dilate(masks, disk_of(1)), disk_of(2)))
    shrunk = Grown(preset("lama-medium"), (-3, -3), resolution=128)(KEYS, 128, 128)
    assert torch.equal(shrunk, ~dilate(dilate(~masks, disk_of(1)), disk_of(2)))
    assert torch.equal(Grown(preset("lama-medium"), (0, 0))(KEYS, 128, 128), masks)
    assert torch.equal(Grown(KeepEvery(2, 1), (-9, -9))(KEYS, 16, 16), KeepEvery(2, 1)(KEYS, 16, 16))


def disk_of(radius: int) -> Tensor:
    y, x = torch.meshgrid(*[torch.arange(-radius, radius + 1)] * 2, indexing="ij")
    return y * y + x * x <= radius * radius


@pytest.mark.parametrize("share", [(0.2, 0.25), (0.9, 1.0), (0.25, 0.25), (0.0, 0.01)])
def test_coverage_is_kept(share: tuple[float, float]) -> None:
    masks = CoverageBetween(preset("lama-medium"), share, tries=3)(MANY[:300], 48, 64)
    covered = masks.flatten(1).sum(1)
    assert covered.min() >= max(1, share[0] * 48 * 64)
    assert covered.max() <= share[1] * 48 * 64


def test_coverage_leaves_fitting_masks_alone() -> None:
    masks = CoverageBetween(Boxes((0, 1), (8, 8), margin=0, resolution=16), (0.0, 1.0), tries=1)(MANY[:100], 16, 16)
    assert set(masks.flatten(1).sum(1).tolist()) == {1, 64}  # one pixel in place of none


def test_curriculum_follows_the_step() -> None:
    course = Curriculum([Boxes((1, 1), (4, 4), resolution=64), Full(), Outpaint()], [0, 100, 200])
    assert not course(MANY, 16, 16).flatten(1).all(1).any()
    wrapped, early = Union([course]), set()
    for step, share in ((25, 0.25), (50, 0.5), (100, 1.0)):
        wrapped.set_step(step)
        full = course(MANY, 16, 16).flatten(1).all(1)
        assert abs(full.float().mean() - share) < 0.03
        assert early <= set(full.nonzero()[:, 0].tolist())  # nobody goes back
        early = set(full.nonzero()[:, 0].tolist())
    course.set_step(10**6)
    assert not course(MANY, 16, 16).flatten(1).all(1).any()
    course.set_step(25)
    resumed = Curriculum([Boxes((1, 1), (4, 4), resolution=64), Full(), Outpaint()], [0, 100, 200])
    resumed.set_step(25)
    assert torch.equal(course(MANY, 16, 16), resumed(MANY, 16, 16))


def test_a_fingerprint_tells_masks_apart_at_any_step() -> None:
    def course(last: MaskGenerator) -> Curriculum:
        return Curriculum([Outpaint(), last], [0, 100])

    generators = [course(Full()), course(Boxes()), course(Boxes(margin=20)), preset("mat"), preset("comodgan")]
    fingerprints = [generator.fingerprint(32, 48) for generator in generators]
    assert len(set(fingerprints)) == 5
    generators[0].set_step(50)
    halfway = generators[0](KEYS, 32, 48)
    assert generators[0].fingerprint(32, 48) == fingerprints[0]
    assert torch.equal(generators[0](KEYS, 32, 48), halfway)  # the step is what it was


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture([]), "at least one mask generator"),
        (lambda: Mixture([Boxes(), Boxes()], [0.5, 0.6]), "2 numbers >= 0 that sum to 1"),
        (lambda: Mixture([Boxes()], [0.5, 0.5]), "1 numbers >= 0 that sum to 1"),
        (lambda: Union([]), "at least one mask generator"),
        (lambda: Intersection([]), "at least one mask generator"),
        (lambda: Inverted(Boxes(), 2), r"probability must be in 0\.\.1, got 2"),
        (lambda: FullWithProbability(Boxes(), -0.1), r"probability must be in 0\.\.1, got -0\.1"),
        (lambda: Grown(Boxes(), (3, -3)), r"pixels must be \[low, high\] with low <= high, got \[3, -3\]"),
        (lambda: CoverageBetween(Boxes(), (0.5, 0.4)), r"share must be \[low, high\]"),
        (lambda: CoverageBetween(Boxes(), tries=0), "tries must be at least 1, got 0"),
        (
            lambda: CoverageBetween(Boxes(), (0.501, 0.51))(KEYS, 4, 4),
            r"share \[0\.501, 0\.51\] of 4 x 4 .* widen the bounds",
        ),
        (lambda: Curriculum([Boxes()], [0, 5]), "steps must be one per generator, got 2 for 1"),
        (lambda: Curriculum([Boxes(), Full()], [5, 0]), r"steps must rise from 0, got \[5, 0\]"),
        (lambda: Curriculum([Boxes()], [0]).set_step(-1), "step must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
