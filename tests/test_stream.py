"""Stream: every sample once per pass, the same order for any split, and the order itself frozen as hashes."""

import hashlib
import pickle
from itertools import islice
from pathlib import Path

import pytest
import torch
from data_fixtures import write_tar
from torch.utils.data import DataLoader

from datamodules.shard_specs import open_shards
from datamodules.stream import (
    PADDING,
    SampleOrder,
    SampleStream,
    batch_positions,
    evaluation_steps,
    permutation,
    worker_steps,
)

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


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_any_split_gives_the_same_positions(world: int, workers: int, batch_size: int) -> None:
    """Ranks side by side, workers in turn: the stream from `start`, without gap or repeat."""
    start, steps = 7, 6
    by_step = {}
    for rank in range(world):
        for worker in range(workers):
            for step in worker_steps(steps, worker, workers):
                positions = batch_positions(step, batch_size=batch_size, rank=rank, world=world, start=start)
                by_step[step, rank] = positions.tolist()
    flat = [position for place in sorted(by_step) for position in by_step[place]]
    assert flat == list(range(start, start + steps * world * batch_size))


def test_endless_worker_steps() -> None:
    assert list(islice(worker_steps(None, 1, 3), 3)) == [1, 4, 7]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", [(f"{shard}{i}.jpg", b"") for i in range(4 - shard)])
    return tmp_path


def evaluate(folder: Path, world: int, batch_size: int) -> list[list[tuple[int, str]]]:
    """(position, key) of every rank."""
    shards = open_shards(str(folder))
    order = SampleOrder(shards.counts, shuffle=False)
    steps = evaluation_steps(len(order), batch_size=batch_size, world=world)
    streams = [
        SampleStream(shards, order, batch_size=batch_size, rank=rank, world=world, steps=steps) for rank in range(world)
    ]
    return [[(raw.position, raw.key) for raw in stream] for stream in streams]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 9, 20])
def test_evaluation_is_equal_on_all_ranks_and_pads_with_weightless_samples(
    folder: Path, world: int, batch_size: int
) -> None:
    ranks = evaluate(folder, world, batch_size)
    assert {len(rank) for rank in ranks} == {evaluation_steps(9, batch_size=batch_size, world=world) * batch_size}
    real = sorted(pair for rank in ranks for pair in rank if pair[0] != PADDING)
    assert [position for position, _ in real] == list(range(9))
    assert [key for _, key in real] == ["00", "01", "02", "03", "10", "11", "12", "20", "21"]


def test_padding_repeats_the_first_samples(folder: Path) -> None:
    assert evaluate(folder, 1, 5)[0][-2:] == [(8, "21"), (PADDING, "00")]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_the_stream(folder: Path, workers: int) -> None:
    shards = open_shards(str(folder))
    order = SampleOrder(shards.counts, seed=1, window=2)
    stream = SampleStream(shards, order, batch_size=1, rank=1, world=2, start=5)
    raws = list(islice(DataLoader(stream, batch_size=None, num_workers=workers), 12))
    assert [raw.position for raw in raws] == list(range(6, 30, 2))
    assert [raw.key for raw in raws] == [shards.read(int(order(torch.tensor([p])))).key for p in range(6, 30, 2)]
