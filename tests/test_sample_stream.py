"""Stream: the same samples in the same order for any split; equal and padded evaluations; what it tells the shards."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from data_fixtures import write_tar
from torch.utils.data import DataLoader

from datamodules.order.bucket_order import BucketOrder, Buckets
from datamodules.order.order import SampleOrder
from datamodules.order.sample_stream import PADDING, SampleStream, batch_positions, evaluation_steps, worker_steps
from datamodules.shards.shard_set import ShardSet
from datamodules.shards.shard_specs import open_shards


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


class ToldShards(ShardSet):
    """Remembers what it was told to fetch."""

    def __init__(self, shards: ShardSet) -> None:
        super().__init__(shards.shards)
        self.told: list[list[int]] = []

    def prefetch(self, numbers: list[int]) -> None:
        self.told.append(numbers)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_shards_are_told_once_per_window_what_comes_next(folder: Path, batch_size: int) -> None:
    shards = ToldShards(open_shards(str(folder)))
    order = SampleOrder(shards.counts, seed=1, window=1)
    stream = SampleStream(shards, order, batch_size=batch_size)
    list(islice(stream, 18))
    ahead = [order.shards_ahead(position) for position in range(0, 18, batch_size)]
    assert shards.told == [now for before, now in zip([None, *ahead], ahead, strict=False) if now != before]
    assert len(shards.told) in (5, 6)  # two epochs of three windows; two that meet may be of the same shards


def test_a_reader_is_told_anew_when_it_starts_anew(folder: Path) -> None:
    shards = ToldShards(open_shards(str(folder)))
    stream = SampleStream(shards, SampleOrder(shards.counts, window=2), batch_size=1, start=3)
    for _ in range(2):
        next(iter(stream))
    assert shards.told == [stream.order.shards_ahead(3)] * 2


def test_local_shards_need_no_telling(folder: Path) -> None:
    shards = open_shards(str(folder))
    assert shards.prefetch([0, 1]) is None


def test_size_of_a_plain_sample_is_the_data_modules(folder: Path) -> None:
    shards = open_shards(str(folder))
    assert next(iter(SampleStream(shards, SampleOrder(shards.counts), batch_size=2))).size is None


def test_size_of_a_sample_is_its_batchs_shape(folder: Path) -> None:
    shards = open_shards(str(folder))
    aspects = torch.tensor([1.0, 2.0, 0.5] * 3).__getitem__
    order = BucketOrder(SampleOrder(shards.counts), aspects, Buckets((64, 64), step=16), batch_size=3, seed=0)
    raws = list(islice(SampleStream(shards, order, batch_size=3, rank=1, world=2, start=6), 30))
    assert [raw.position for raw in raws[:6]] == [9, 10, 11, 15, 16, 17]
    expected = order.shape(torch.tensor([raw.position for raw in raws])).tolist()
    assert [list(raw.size) for raw in raws] == expected
    assert all(len({raw.size for raw in raws[first : first + 3]}) == 1 for first in range(0, 30, 3))
    assert len({raw.size for raw in raws}) > 1
