"""Stream: position -> sample. One endless stream with one integer of state, and its split over ranks and workers.

    sample(p) = order of epoch p // N, at p % N

Shards are permuted, cut into windows of K shards, and the samples of each window are permuted among themselves: a
reader has K shards open at a time. The order comes from our own integer hash, since neither NumPy nor torch promises
its permutations across versions. Only the windows in use are computed, so that any position costs the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.shards import RawSample, ShardSet
from inpaint_module.randomness import Stream, hash32, integers, key

PLAN_VERSION = 1  # of the order below: change it whenever the same seed gives another order
PADDING = -1  # the position of a sample that only fills the last batch of an evaluation


def permutation(order_key: Tensor, length: int) -> Tensor:
    """0..length-1 in an order that is a pure function of `order_key` int64 (1,); returns int64 (length,)."""
    return torch.argsort(hash32(order_key, torch.arange(length)), stable=True)


class EpochPlan(NamedTuple):
    """The shards of one epoch: `shards` (S,) in their order, `windows` (W+1,) the first place of each window."""

    epoch_key: int
    shards: Tensor
    windows: Tensor


class SampleOrder:
    """The order of the stream: int64 positions (B,) -> int64 sample numbers (B,).

    Args:
        counts: samples of each shard.
        seed: seeds the order.
        window: how many shards are mixed with each other.
        shuffle: False gives the plain order.
    """

    def __init__(self, counts: Sequence[int], *, seed: int = 0, window: int = 8, shuffle: bool = True) -> None:
        self.counts = torch.as_tensor(counts, dtype=torch.int64)
        self.starts = self.counts.cumsum(0) - self.counts
        self.length = int(self.counts.sum())
        self.seed = seed
        self.window = window
        self.shuffle = shuffle
        self._make_caches()

    def __len__(self) -> int:
        return self.length

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_plan", "_samples")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._make_caches()

    def _make_caches(self) -> None:
        self._plan = lru_cache(maxsize=2)(self._plan_epoch)
        self._samples = lru_cache(maxsize=4)(self._permute_window)

    def _plan_epoch(self, epoch: int) -> EpochPlan:
        """Permute the shards and cut them into windows."""
        epoch_key = key(self.seed, torch.tensor([epoch]), Stream.ORDER)
        shards = permutation(epoch_key, len(self.counts))
        ends = self.counts[shards].cumsum(0)
        last = torch.arange(self.window, len(shards) + self.window, self.window).clamp(max=len(shards)) - 1
        return EpochPlan(int(epoch_key), shards, torch.cat([torch.zeros(1, dtype=torch.int64), ends[last]]))

    def _permute_window(self, epoch: int, window: int) -> Tensor:
        """The sample numbers of one window, in their order."""
        plan = self._plan(epoch)
        shards = plan.shards[window * self.window : (window + 1) * self.window].tolist()
        samples = torch.cat([torch.arange(int(self.counts[s])) + self.starts[s] for s in shards])
        return samples[permutation(key(plan.epoch_key, torch.tensor([window]), Stream.ORDER), len(samples))]

    def _in_epoch(self, epoch: int, places: Tensor) -> Tensor:
        plan = self._plan(epoch)
        windows = torch.searchsorted(plan.windows, places, right=True) - 1
        samples = torch.empty_like(places)
        for window in windows.unique().tolist():
            here = windows == window
            samples[here] = self._samples(epoch, window)[places[here] - plan.windows[window]]
        return samples

    def window_bounds(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """First position and length of the window around each position; the whole set if nothing is shuffled."""
        places = positions % self.length
        if not self.shuffle:
            return positions - places, torch.full_like(positions, self.length)
        first, length = torch.empty_like(positions), torch.empty_like(positions)
        epochs = positions // self.length
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            borders = self._plan(epoch).windows
            window = torch.searchsorted(borders, places[here], right=True) - 1
            first[here] = epoch * self.length + borders[window]
            length[here] = borders[window + 1] - borders[window]
        return first, length

    def another(self, positions: Tensor, words: Tensor) -> Tensor:
        """Another sample of the window around each position, all equally likely by 32-bit `words`; int64 (B,).

        -1 where the window holds one sample only.
        """
        first, length = self.window_bounds(positions)
        shift = integers(words, 1, length.clamp(min=2))
        others = self(first + (positions - first + shift) % length)
        return torch.where(length > 1, others, -1)

    def __call__(self, positions: Tensor) -> Tensor:
        """The number of the sample at each position >= 0; int64 (B,) -> int64 (B,)."""
        places = positions % self.length
        if not self.shuffle:
            return places
        epochs = positions // self.length
        samples = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            samples[here] = self._in_epoch(epoch, places[here])
        return samples


def batch_positions(step: int, *, batch_size: int, rank: int = 0, world: int = 1, start: int = 0) -> Tensor:
    """The positions of one rank's batch at micro-step `step` after position `start`; int64 (B,)."""
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
        shards: where the samples are read.
        order: position -> sample number.
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
        order: SampleOrder,
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

    def _read(self, position: int, sample: int, donor: int) -> RawSample:
        raw = self.shards.read(sample)._replace(position=position)
        return raw if donor < 0 else raw._replace(donor=self.shards.read(donor))

    def _batch(self, step: int) -> Iterator[RawSample]:
        positions = batch_positions(
            step, batch_size=self.batch_size, rank=self.rank, world=self.world, start=self.start
        )
        samples = self.order(positions)
        donors = self.donors(positions) if self.donors else torch.full_like(samples, -1)
        if self.steps is not None:
            positions = positions.where(positions < len(self.order), PADDING)
        yield from map(self._read, positions.tolist(), samples.tolist(), donors.tolist())

    def __iter__(self) -> Iterator[RawSample]:
        info = get_worker_info()
        for step in worker_steps(self.steps, info.id if info else 0, info.num_workers if info else 1):
            yield from self._batch(step)
