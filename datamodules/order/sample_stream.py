"""Stream: one endless stream with one integer of state, split over ranks and workers; the samples at its positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.order.order import Order
from datamodules.shards.shard_set import RawSample, ShardSet

PADDING = -1  # the position of a sample that only fills the last batch of an evaluation


def batch_positions(step: int, *, batch_size: int, rank: int = 0, world: int = 1, start: int = 0) -> Tensor:
    """The positions of one rank's batch at micro-step `step` after position `start`; int64 (B,).

    Example:
        >>> [batch_positions(1, batch_size=2, rank=rank, world=2, start=10).tolist() for rank in range(2)]
        [[14, 15], [16, 17]]
    """
    first = start + (step * world + rank) * batch_size
    return torch.arange(first, first + batch_size)


def evaluation_steps(samples: int, *, batch_size: int, world: int = 1) -> int:
    """Batches that every rank gets in an evaluation: the last ones are padded."""
    return -(-samples // (batch_size * world))


def worker_steps(steps: int | None, worker: int = 0, workers: int = 1) -> Iterable[int]:
    """The micro-steps that one of a rank's workers prepares, for ever if `steps` is None.

    The DataLoader asks its workers in turn, so that the batches come in the order of their steps.
    """
    return count(worker, workers) if steps is None else range(worker, steps, workers)


class SampleStream(IterableDataset[RawSample]):
    """The first stage of the pipeline: the raw samples of this rank and worker, in the order of the stream.

    Args:
        shards: where the samples are read; told which ones come next whenever a window begins.
        order: position -> sample number; its shapes go into the raw samples' `size`.
        batch_size: samples of one batch on one rank.
        rank: of this process.
        world: number of processes.
        start: first position.
        steps: number of batches; None never ends.
        donors: int64 positions (B,) -> the number of the sample that lends its mask, or -1; None lends none.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: Order,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        steps: int | None = None,
        donors: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.shards = shards
        self.order = order
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.start = start
        self.steps = steps
        self.donors = donors

    def _positions(self, step: int) -> Tensor:
        return batch_positions(step, batch_size=self.batch_size, rank=self.rank, world=self.world, start=self.start)

    def _sizes(self, positions: Tensor) -> list[tuple[int, int] | None]:
        shapes = self.order.shape(positions)
        return [None] * len(positions) if shapes is None else [(height, width) for height, width in shapes.tolist()]

    def _read(self, position: int, sample: int, donor: int, size: tuple[int, int] | None) -> RawSample:
        raw = self.shards.read(sample)._replace(position=position, size=size)
        return raw if donor < 0 else raw._replace(donor=self.shards.read(donor))

    def _batch(self, positions: Tensor) -> Iterator[RawSample]:
        samples, sizes = self.order(positions), self._sizes(positions)
        donors = self.donors(positions) if self.donors else torch.full_like(samples, -1)
        if self.steps is not None:
            positions = positions.where(positions < len(self.order), PADDING)
        yield from map(self._read, positions.tolist(), samples.tolist(), donors.tolist(), sizes)

    def __iter__(self) -> Iterator[RawSample]:
        info = get_worker_info()
        ahead: list[int] = []
        for step in worker_steps(self.steps, info.id if info else 0, info.num_workers if info else 1):
            positions = self._positions(step)
            if ahead != (ahead := self.order.shards_ahead(int(positions[0]))):
                self.shards.prefetch(ahead)
            yield from self._batch(positions)
