"""Order: every sample once per pass, the same at any position, and the order itself frozen as hashes."""

import hashlib
import pickle

import pytest
import torch

from datamodules.order.order import SampleOrder, permutation

GOLDEN = {
    (0, (5, 3, 7, 4), 2): "bbd3c7f72ff8855d",
    (1, (5, 3, 7, 4), 2): "f07886408f450214",
    (2**40 + 7, (1000, 900, 1, 50), 3): "f748344d7b9e23b7",
    (0, (10000,) * 20, 8): "08e25e9348b12965",
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_order(case: tuple[int, tuple[int, ...], int]) -> None:
    """If this fails, PLAN_VERSION must grow: old checkpoints would resume in another order."""
    seed, counts, window = case
    order = SampleOrder(counts, seed=seed, window=window)
    samples = order(torch.arange(2 * len(order)))
    assert hashlib.sha256(samples.numpy().astype("<i8").tobytes()).hexdigest()[:16] == GOLDEN[case]


def test_permutation_is_a_bijection() -> None:
    order = permutation(torch.tensor([5]), 1000)
    assert order.sort().values.equal(torch.arange(1000))
    assert not order.equal(permutation(torch.tensor([6]), 1000))


@pytest.mark.parametrize("counts", [(1,), (4, 4, 4), (5, 3, 0, 7, 4)])
@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_each_sample_once_per_epoch_and_another_order_each_time(counts: tuple[int, ...], window: int) -> None:
    order = SampleOrder(counts, seed=3, window=window)
    n = len(order)
    epochs = order(torch.arange(3 * n)).view(3, n)
    assert all(epoch.sort().values.equal(torch.arange(n)) for epoch in epochs)
    assert n == 1 or not epochs[0].equal(epochs[1])


def test_a_window_mixes_its_shards_only() -> None:
    order = SampleOrder((10,) * 6, seed=0, window=2)
    shards = order(torch.arange(60)) // 10
    assert [len(set(part.tolist())) for part in shards.split(20)] == [2, 2, 2]


def test_far_positions_cost_nothing_and_match_the_epoch_before_and_after() -> None:
    order = SampleOrder((40,) * 5, seed=1, window=2)
    far = 10**12 * 200 + 190
    positions = torch.arange(far, far + 20)
    assert order(positions).equal(torch.cat([order(positions[:10]), order(positions[10:])]))
    assert order(positions.flip(0)).equal(order(positions).flip(0))


def test_plain_order() -> None:
    assert SampleOrder((2, 3), shuffle=False)(torch.arange(7)).tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_order_pickles_with_warm_caches() -> None:
    order = SampleOrder((4, 4, 4), seed=2, window=2)
    before = order(torch.arange(30))
    assert pickle.loads(pickle.dumps(order))(torch.arange(30)).equal(before)


def test_an_empty_shard_changes_nothing_but_the_numbers() -> None:
    assert SampleOrder((2, 0, 3), shuffle=False)(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert SampleOrder((0, 5, 0), window=1, seed=1)(torch.arange(5)).sort().values.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_shards_ahead_are_those_of_the_next_two_windows(window: int, shuffle: bool) -> None:
    """Told from the samples: walk on from each position until a third window begins."""
    order = SampleOrder((3, 2, 4, 1, 5), seed=4, window=window, shuffle=shuffle)
    shards, windows = [], []
    for position in range(3 * 15):
        epoch, place = divmod(position, 15)
        sample = order(torch.tensor([position]))
        shards.append(int((sample >= order.starts).sum()) - 1)
        windows.append((epoch, int((order._plan(epoch).windows <= place).sum())))
    numbers = sorted(set(windows))
    for position in range(2 * 15):
        near = numbers[numbers.index(windows[position]) :][:2]
        needed = [{shards[p] for p in range(3 * 15) if windows[p] == number} for number in near]
        ahead = order.shards_ahead(position)
        assert len(ahead) == len(set(ahead))
        assert set(ahead) == needed[0] | needed[1]
        assert set(ahead[: len(needed[0])]) == needed[0]


def test_shards_ahead_of_a_plain_order() -> None:
    order = SampleOrder((2, 2, 2, 2, 2), window=2, shuffle=False)
    assert [order.shards_ahead(position) for position in (0, 3, 4, 8)] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [2, 3, 4],
        [4, 0, 1],
    ]


def test_a_plain_order_has_no_shapes_and_no_plan_of_its_own() -> None:
    order = SampleOrder((3,))
    assert order.shape(torch.arange(3)) is None
    assert order.plan() == {}
    assert order.shard_count == 1
