"""Exactly once: over any ranks, batch sizes, workers and restarts, every position is used once, and so is every sample.

Drawn cases of pure functions first; then real loaders with worker processes on real tars.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from data_fixtures import write_tar
from torch import Tensor

from datamodules.order import sample_stream as stream_module
from datamodules.order.bucket_order import BucketOrder, Buckets
from datamodules.order.loaders import StreamLoader
from datamodules.order.order import MixedOrder, Order, SampleOrder
from datamodules.order.sample_stream import SampleStream
from datamodules.shards.shard_set import RawSample, ShardSet
from datamodules.shards.shard_specs import open_shards


class Run(NamedTuple):
    """One part of a training run, between two kills."""

    world: int
    workers: int
    steps: int


class Case(NamedTuple):
    counts: list[int]
    window: int
    seed: int
    batch_size: int
    runs: list[Run]


def draw_case(number: int) -> Case:
    """20..500 samples in 1..9 shards, empty ones among them, and 1..4 runs, each with its own ranks and workers."""
    random = Random(number)
    counts = [random.choice([0, 1, 2, 7, 30, 60]) for _ in range(random.randint(1, 9))]
    counts[random.randrange(len(counts))] += 20
    runs = [Run(random.randint(1, 4), random.randint(0, 3), random.randint(0, 16)) for _ in range(random.randint(1, 4))]
    return Case(counts, random.randint(1, 5), random.randrange(2**40), random.randint(1, 9), runs)


class Nowhere:
    """Stands for a ShardSet: the samples are their numbers."""

    def read(self, sample: int) -> RawSample:
        return RawSample("", str(sample), {})

    def prefetch(self, numbers: list[int]) -> None:
        pass


class Worker(NamedTuple):
    """Stands for torch's WorkerInfo."""

    id: int
    num_workers: int


def read_batches(stream: SampleStream, steps: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> list[RawSample]:
    """What a DataLoader yields of `steps` batches: its workers' batches, in turn."""
    readers = []
    for worker in range(max(workers, 1)):
        info = Worker(worker, workers) if workers else None
        monkeypatch.setattr(stream_module, "get_worker_info", lambda info=info: info)
        reads = -(-steps // max(workers, 1)) * stream.batch_size
        readers.append(iter(list(islice(stream, reads))))  # at once: the stream asks which worker it is in
    return [raw for step in range(steps) for raw in islice(readers[step % len(readers)], stream.batch_size)]


def train(order: Order, case: Case, monkeypatch: pytest.MonkeyPatch) -> list[list[RawSample]]:
    """The batches of all ranks and runs, in the order of the steps; each run goes on where the one before stopped."""
    position, batches = 0, []
    for run in case.runs:
        ranks = []
        for rank in range(run.world):
            stream = SampleStream(
                Nowhere(), order, batch_size=case.batch_size, rank=rank, world=run.world, start=position
            )
            raws = read_batches(stream, run.steps, run.workers, monkeypatch)
            ranks.append([raws[first : first + case.batch_size] for first in range(0, len(raws), case.batch_size)])
        batches += [batch for step in zip(*ranks, strict=True) for batch in step]
        position += run.steps * run.world * case.batch_size
    return batches


def check_positions(order: Order, batches: list[list[RawSample]]) -> list[int]:
    """Every position once, in order, with the order's sample; returns the samples."""
    raws = [raw for batch in batches for raw in batch]
    assert [raw.position for raw in raws] == list(range(len(raws)))
    samples = [int(raw.key) for raw in raws]
    assert samples == order(torch.arange(len(raws))).tolist()
    return samples


def check_passes(samples: list[int], numbers: range) -> None:
    """Every sample once in each whole pass, none twice in the last one."""
    for first in range(0, len(samples), len(numbers)):
        part = samples[first : first + len(numbers)]
        assert len(set(part)) == len(part)
        assert set(part) <= set(numbers)


@pytest.mark.parametrize("number", range(40))
def test_plain(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw_case(number)
    order = SampleOrder(case.counts, seed=case.seed, window=case.window)
    check_passes(check_positions(order, train(order, case, monkeypatch)), range(len(order)))


@pytest.mark.parametrize("number", range(100, 120))
def test_mixed(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source's samples once per pass of its own."""
    case, other = draw_case(number), draw_case(number + 1000)
    sources = [SampleOrder(one.counts, seed=one.seed, window=one.window) for one in (case, other)]
    weights = [1.0, Random(number).uniform(0.01, 20)]
    order = MixedOrder(sources, weights, seed=case.seed)
    samples = check_positions(order, train(order, case, monkeypatch))
    for source in range(2):
        own = range(order.offsets[source], order.offsets[source + 1])
        check_passes([sample for sample in samples if sample in own], own)


def with_buckets(order: Order, case: Case, group: int) -> BucketOrder:
    random = Random(case.seed)
    aspects = torch.tensor([random.choice([0.56, 0.75, 1.0, 1.5, 1.78]) for _ in range(len(order))])
    options = {"batch_size": case.batch_size, "seed": case.seed, "group": group}
    return BucketOrder(order, aspects.__getitem__, Buckets((64, 64), step=8), **options)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("number", range(200, 220))
def test_bucketed(number: int, mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One shape per batch; whole groups hold the samples of the order below, so it loses and repeats none."""
    case = draw_case(number)
    below: Any = SampleOrder(case.counts, seed=case.seed, window=case.window)
    below = MixedOrder([below, SampleOrder([50, 40])], [2.0, 1.0], seed=case.seed) if mixed else below
    order = with_buckets(below, case, group=Random(number).randint(1, 12))
    batches = train(order, case, monkeypatch)
    assert all(len({raw.size for raw in batch}) == 1 for batch in batches)
    samples = check_positions(order, batches)
    length = order.group * order.batch_size
    for first in range(0, len(samples) - length + 1, length):
        positions = torch.arange(first, first + length)
        assert Counter(samples[first : first + length]) == Counter(below(positions).tolist())


# Real loaders


SIDES = [(8, 8), (16, 8), (8, 16), (24, 16), (8, 8)]


def fake_decode(raw: RawSample) -> dict[str, Any]:
    """A picture of the asked size, without a picture's cost."""
    image = torch.zeros(3, *(raw.size or (2, 2)), dtype=torch.uint8)
    return {"image": image, "position": raw.position, "caption": "", "__key__": raw.key}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """31 samples in four tars."""
    folder = tmp_path_factory.mktemp("shards")
    for shard, count in enumerate((9, 5, 13, 4)):
        members = [(f"{shard}-{number:02d}.jpg", bytes([shard, number])) for number in range(count)]
        write_tar(folder / f"{shard}.tar", members)
    return open_shards(str(folder))


def load(shards: ShardSet, order: Order, batch_size: int, runs: list[Run]) -> list[dict[str, Any]]:
    """The batches of all ranks and runs. A run's loader is left with batches in its workers, as a kill leaves it."""
    position, batches = 0, []
    for run in runs:
        ranks = []
        for rank in range(run.world):
            stream = SampleStream(shards, order, batch_size=batch_size, rank=rank, world=run.world)
            loader = StreamLoader(stream, fake_decode, num_workers=run.workers, position=partial(int, position))
            ranks.append(list(islice(loader, run.steps)))
        batches += [batch for step in zip(*ranks, strict=True) for batch in step]
        position += run.steps * run.world * batch_size
    return batches


def orders(shards: ShardSet) -> dict[str, Order]:
    plain = SampleOrder(shards.counts, seed=3, window=2)
    parts = [SampleOrder(shards.counts[:2], seed=3, window=1), SampleOrder(shards.counts[2:], seed=4, window=2)]
    mixed = MixedOrder(parts, [1.0, 2.0], seed=3)
    aspects = torch.tensor([width / height for height, width in SIDES]).repeat(7).__getitem__
    buckets = Buckets((32, 32), step=8)
    return {
        "plain": plain,
        "mixed": mixed,
        "buckets": BucketOrder(plain, aspects, buckets, batch_size=3, seed=3, group=4),
        "mixed, buckets": BucketOrder(mixed, aspects, buckets, batch_size=3, seed=3, group=4),
    }


@pytest.mark.parametrize("kind", ["plain", "mixed", "buckets", "mixed, buckets"])
def test_loaders_with_workers_on_tars(shards: ShardSet, kind: str) -> None:
    """2 ranks with 2 workers, then 1 with none, then 3 with 3: as one rank without a stop."""
    order = orders(shards)[kind]
    batches = load(shards, order, 3, [Run(2, 2, 3), Run(1, 0, 5), Run(3, 3, 2)])
    positions = torch.cat([batch["position"] for batch in batches])
    assert positions.equal(torch.arange(51))
    keys = [name for batch in batches for name in batch["__key__"]]
    assert keys == [shards.read(sample).key for sample in order(positions).tolist()]
    shape: Tensor | None = order.shape(positions)
    if shape is not None:
        assert [list(batch["image"].shape[-2:]) for batch in batches] == shape[::3].tolist()
        assert len(shape.unique(dim=0)) > 2
    if kind == "plain":
        assert Counter(keys[:31]) == Counter({shards.read(sample).key: 1 for sample in range(31)})
