"""Removal masks: another sample of the same window, the same one for any split, as often as asked."""

from itertools import pairwise

import pytest
import torch

from datamodules.order.bucket_order import BucketOrder, Buckets
from datamodules.order.order import SampleOrder
from datamodules.order.sample_stream import RemovalMasks
from inpaint_module.randomness import Stream, draw, key

COUNTS = (5, 3, 7, 4, 6, 2)


def order(**options: object) -> SampleOrder:
    return SampleOrder(COUNTS, **{"seed": 3, "window": 2, **options})


def test_a_pure_function_of_the_position() -> None:
    others = RemovalMasks(order(), seed=1, probability=0.5)
    positions = torch.arange(100)
    whole = others(positions)
    assert torch.cat([others(part) for part in positions.split(7)]).equal(whole)
    assert others(positions.flip(0)).equal(whole.flip(0))
    assert not RemovalMasks(order(), seed=2, probability=0.5)(positions).equal(whole)


@pytest.mark.parametrize("shuffle", [True, False])
def test_another_sample_of_the_window(shuffle: bool) -> None:
    samples = order(shuffle=shuffle)
    positions = torch.arange(3 * len(samples))
    others = RemovalMasks(samples, seed=0, probability=1.0)(positions)
    first, length = samples.window_bounds(positions)
    for position, other, low, size in zip(*(t.tolist() for t in (positions, others, first, length)), strict=True):
        window = samples(torch.arange(low, low + size)).tolist()
        assert low <= position < low + size
        assert other in window
        assert other != int(samples(torch.tensor([position])))
    assert int(length.min()) < len(samples) or not shuffle


def test_every_other_sample_lends_equally_often() -> None:
    others = RemovalMasks(SampleOrder((3, 2), shuffle=False), seed=0, probability=1.0)
    shares = others(torch.arange(2, 20000, 5)).bincount(minlength=5) / 4000
    assert shares.tolist() == pytest.approx([0.25, 0.25, 0, 0.25, 0.25], abs=0.02)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_probability(probability: float) -> None:
    others = RemovalMasks(order(), seed=0, probability=probability)(torch.arange(2000))
    assert (others >= 0).double().mean().item() == pytest.approx(probability, abs=0.03)


def test_a_lonely_sample_gets_no_removal_mask() -> None:
    assert RemovalMasks(SampleOrder((1,)), seed=0, probability=1.0)(torch.arange(4)).tolist() == [-1] * 4


def test_windows_cover_the_epochs() -> None:
    samples = order(window=4)
    first, length = samples.window_bounds(torch.arange(2 * len(samples)))
    borders = sorted({(int(a), int(a + b)) for a, b in zip(first, length, strict=True)})
    assert borders[0][0] == 0
    assert borders[-1][1] == 2 * len(samples)
    assert all(before[1] == after[0] for before, after in pairwise(borders))
    assert len(borders) == 4


def test_removal_masks_of_any_order_are_those_of_the_sample_in_its_window() -> None:
    """Below the batches of one shape, the same sample at the same place has the mask of the same other sample."""
    plain = order()
    aspects = torch.linspace(0.5, 2, len(plain)).__getitem__
    bucketed = BucketOrder(plain, aspects, Buckets((64, 64), step=16), batch_size=3, seed=0)
    positions = torch.arange(120)
    others = RemovalMasks(bucketed, seed=1, probability=1.0)(positions)
    words = draw(key(1, positions, Stream.REMOVAL), 2)[:, 1]
    assert others.equal(bucketed.another(positions, words))
    assert not others.eq(bucketed(positions)).any()
