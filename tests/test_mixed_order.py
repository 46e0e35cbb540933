"""Mixed sources: exact shares per cycle, nothing lost in any source, the pattern frozen as hashes."""

import hashlib
import math
import pickle

import pytest
import torch

from datamodules.order.order import CYCLE, MixedOrder, SampleOrder, cycle_counts

GOLDEN = {
    (0, (1.0, 1.0)): "2b81f1b1dfa37f39",
    (2**40 + 7, (0.7, 0.2, 0.1)): "b45cc6a0a89232ae",
}


def mixed(weights: tuple[float, ...] = (3.0, 1.0), seed: int = 0, window: int = 2) -> MixedOrder:
    counts = ((50, 30, 70, 40), (20, 60), (90,))[: len(weights)]
    return MixedOrder([SampleOrder(c, seed=seed, window=window) for c in counts], weights, seed=seed)


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_order(case: tuple[int, tuple[float, ...]]) -> None:
    """If this fails, PLAN_VERSION must grow: old checkpoints would resume in another order."""
    seed, weights = case
    samples = mixed(weights, seed)(torch.arange(2 * CYCLE + 100))
    assert hashlib.sha256(samples.numpy().astype("<i8").tobytes()).hexdigest()[:16] == GOLDEN[case]


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ((1.0,), [4096]),
        ((1, 1), [2048, 2048]),
        ((3.0, 1.0), [3072, 1024]),
        ((1.0, 1.0, 1.0), [1366, 1365, 1365]),  # 1365.33 each: the one left goes to the first
        ((0.7, 0.2, 0.1), [2867, 819, 410]),  # 2867.2, 819.2, 409.6
        ((4095.0, 1.0), [4095, 1]),
    ],
)
def test_cycle_counts_by_hand(weights: tuple[float, ...], counts: list[int]) -> None:
    assert cycle_counts(weights) == counts


def test_only_ratios_of_weights_count() -> None:
    assert cycle_counts([0.1, 0.3, 0.7]) == cycle_counts([0.2, 0.6, 1.4])


@pytest.mark.parametrize("weights", [(3.0, 1.0), (0.7, 0.2, 0.1), (1.0, 1.0, 4094.0)])
def test_shares_are_exact_in_every_cycle_and_near_within_it(weights: tuple[float, ...]) -> None:
    order = mixed(weights)
    sources = torch.bucketize(order(torch.arange(3 * CYCLE)), torch.tensor(order.offsets[1:]), right=True)
    for cycle in sources.split(CYCLE):
        assert cycle.bincount(minlength=len(weights)).tolist() == cycle_counts(weights)
    share = weights[0] / sum(weights)
    first = sources[:1024].eq(0).double().mean().item()
    assert first == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / 1024))


def test_another_pattern_in_every_cycle() -> None:
    first, second = mixed()(torch.arange(2 * CYCLE)).ge(190).split(CYCLE)
    assert not first.equal(second)


@pytest.mark.parametrize("start", [0, 5 * CYCLE - 100, 10**9 * CYCLE + 17])
def test_each_source_goes_through_its_own_stream(start: int) -> None:
    """The samples of one source, as they come, are its own order's from some index on, without gap or repeat."""
    order = mixed((0.7, 0.2, 0.1), seed=4)
    samples = order(torch.arange(start, start + 3000))
    cycle, place = divmod(start, CYCLE)
    for source, own in enumerate(order.orders):
        low, high = order.offsets[source], order.offsets[source + 1]
        before = order(torch.arange(cycle * CYCLE, start))
        first = cycle * int(order.counts[source]) + int(((before >= low) & (before < high)).sum())
        here = samples[(samples >= low) & (samples < high)] - low
        assert here.equal(own(torch.arange(first, first + len(here))))
    assert place < CYCLE


def test_every_sample_of_a_source_once_per_own_pass() -> None:
    order = mixed((3.0, 1.0))
    samples = order(torch.arange(CYCLE))
    for low, high in ((0, 190), (190, 270)):
        passes = samples[(samples >= low) & (samples < high)].split(high - low)
        assert all(one.sort().values.equal(torch.arange(low, high)) for one in passes[:-1])
        assert len(passes) > 10


def test_one_source_alone_is_its_own_order() -> None:
    own = SampleOrder((50, 30, 70, 40), seed=2, window=2)
    assert MixedOrder([own], [2.0], seed=9)(torch.arange(5000)).equal(own(torch.arange(5000)))


def test_any_split_of_the_positions_gives_the_same_samples() -> None:
    order = mixed()
    positions = torch.arange(CYCLE - 50, CYCLE + 50)
    assert order(positions.flip(0)).equal(order(positions).flip(0))
    assert torch.cat([order(part) for part in positions.split(7)]).equal(order(positions))


def test_another_is_of_the_same_source_and_window() -> None:
    order = mixed((0.7, 0.2, 0.1))
    positions = torch.arange(1000)
    words = (positions * 2654435761) & 0xFFFFFFFF
    samples, others = order(positions), order.another(positions, words)
    borders = torch.tensor(order.offsets[1:])
    assert torch.bucketize(samples, borders, right=True).equal(torch.bucketize(others, borders, right=True))
    assert not samples.eq(others).any()
    index = 0
    for sample, other, word in zip(samples.tolist(), others.tolist(), words.tolist(), strict=True):
        if sample < 190:
            assert order.orders[0].another(torch.tensor([index]), torch.tensor([word])).item() == other
            index += 1


def test_a_lonely_sample_gets_no_removal_mask() -> None:
    order = MixedOrder([SampleOrder((4,)), SampleOrder((1,))], [1.0, 1.0], seed=0)
    positions = torch.arange(200)
    lonely = order(positions) == 4
    assert lonely.any()
    others = order.another(positions, torch.zeros_like(positions))
    assert others[lonely].unique().tolist() == [-1]
    assert others[~lonely].min() >= 0


@pytest.mark.parametrize("position", [0, 1000, CYCLE + 3, 700 * CYCLE + 5])
def test_shards_ahead_are_every_sources(position: int) -> None:
    order = mixed((3.0, 1.0))
    assert order.shard_count == 6
    shard_of = torch.arange(6).repeat_interleave(torch.tensor([50, 30, 70, 40, 20, 60]))
    ahead = order.shards_ahead(position)
    assert len(ahead) == len(set(ahead))
    assert set(ahead) >= set(shard_of[order(torch.arange(position, position + 8))].tolist())
    first, second = ([shard for shard in ahead if (shard >= 4) == late] for late in (False, True))
    assert {ahead[0] >= 4, ahead[1] >= 4} == {False, True}, "the sources in turns"
    assert sorted(second) == [4, 5]
    assert len(first) >= 2


def test_shards_ahead_at_a_cycles_first_place_are_the_sources_own() -> None:
    order = mixed((3.0, 1.0))
    first, second = order.orders[0].shards_ahead(5 * 3072), order.orders[1].shards_ahead(5 * 1024)
    ahead = order.shards_ahead(5 * CYCLE)
    assert [shard for shard in ahead if shard < 4] == first
    assert [shard - 4 for shard in ahead if shard >= 4] == second


def test_pickles_with_warm_caches() -> None:
    order = mixed()
    before = order(torch.arange(100))
    assert pickle.loads(pickle.dumps(order))(torch.arange(100)).equal(before)


def test_plan_holds_shares_and_sources() -> None:
    assert mixed((3.0, 1.0)).plan() == {"source_weights": [0.75, 0.25], "source_samples": [190, 80]}
    assert mixed((6.0, 2.0)).plan() == mixed((3.0, 1.0)).plan()
    assert len(mixed()) == 270


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0], []])
def test_one_weight_per_source(weights: list[float]) -> None:
    with pytest.raises(
        ValueError, match=r"data\.order\.source_weights: expected one number per source, 2 in all, got \["
    ):
        MixedOrder([SampleOrder((2,)), SampleOrder((3,))], weights, seed=0)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weights_are_positive_and_finite(weight: float) -> None:
    with pytest.raises(
        ValueError, match=r"data\.order\.source_weights: expected positive finite numbers, got \[1\.0, "
    ):
        cycle_counts([1.0, weight])


def test_no_weights_at_all() -> None:
    with pytest.raises(ValueError, match=r"data\.order\.source_weights: expected positive finite numbers, got \[\]"):
        cycle_counts([])


def test_a_weight_too_small_for_a_place() -> None:
    message = r"source_weights: expected at least 1/4096 of their sum each, so 0\.0244 or more, got \[100\.0, 0"
    with pytest.raises(ValueError, match=message):
        cycle_counts([100.0, 0.001])
    assert cycle_counts([100.0, 0.0245])[1] == 1


def test_a_source_without_samples() -> None:
    message = r"data\.order\.source_weights: expected samples in every source, none in number \[1\]"
    with pytest.raises(ValueError, match=message):
        MixedOrder([SampleOrder((2,)), SampleOrder((0,))], [1.0, 1.0], seed=0)
