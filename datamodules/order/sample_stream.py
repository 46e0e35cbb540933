"""Stream: one endless stream with one integer of state, in the order asked for, split over ranks and workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.checks import check_at_least
from datamodules.order.bucket_order import AspectRatios, BucketOrder, Buckets
from datamodules.order.order import MixedOrder, Order, SampleOrder
from datamodules.shards.shard_set import RawSample, ShardSet
from inpaint_module.randomness import Stream, draw, key

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


@dataclass(frozen=True)
class OrderOptions:
    """How training samples are mixed, and in which shapes they come.

    Args:
        window: Shards whose samples are mixed with each other.
        source_weights: How often each entry of train_shards is drawn from, such as [3, 1]; null draws every sample
            equally often.
        repeats: How often each sample of an entry of train_shards comes while one of 1 comes once, such as [10, 1] for
            few photos beside many others. With source_weights it must be null, and the other way round.
        bucket_step: Train in batches of one shape each, of about the pixels of image_size, sides multiples of this;
            null crops all to image_size. The index must hold image sizes, as make_shards and index_shards write it.
        bucket_max_aspect: Longest side of a bucket, in times its shortest.

    Raises:
        ValueError: naming the argument, if one is out of range.
    """

    window: int = 8
    source_weights: list[float] | None = None
    repeats: list[float] | None = None
    bucket_step: int | None = None
    bucket_max_aspect: float = 2.0

    def __post_init__(self) -> None:
        check_at_least(1, "data.order", window=self.window)
        if self.repeats is not None and self.source_weights is not None:
            raise ValueError(
                f"data.order.repeats: expected null with source_weights {self.source_weights}, which say how often "
                f"each source is drawn from whatever it holds, got {self.repeats}"
            )
        if not all(0 < number < math.inf for number in self.repeats or ()):
            raise ValueError(f"data.order.repeats: expected positive finite numbers, got {self.repeats}")

    def buckets(self, image_size: tuple[int, int]) -> Buckets | None:
        """The shapes of the batches, near the pixels of `image_size` (H, W); None for that size alone."""
        if self.bucket_step is None:
            return None
        return Buckets(image_size, step=self.bucket_step, max_aspect=self.bucket_max_aspect)


def stream_order(
    shards: ShardSet,
    sources: Sequence[int],
    *,
    options: OrderOptions,
    batch_size: int,
    seed: int,
    buckets: Buckets | None,
) -> Order:
    """The order of a training stream: plain, mixed or in buckets.

    Args:
        shards: all of them.
        sources: shards of each source.
        options: window and weights.
        batch_size: samples of one batch.
        seed: of the order.
        buckets: shapes of the batches, of `options.buckets`; None for one shape.
    """
    window, weights = options.window, options.source_weights
    order: Order = SampleOrder(shards.counts, seed=seed, window=window)
    if options.repeats is not None and len(options.repeats) != len(sources):
        raise ValueError(
            f"data.order.repeats: expected one number for each of the {len(sources)} entries of data.train_shards, got "
            f"{options.repeats}"
        )
    if weights is not None or options.repeats is not None:
        ends = accumulate(sources, initial=0)
        parts = [SampleOrder(shards.counts[first:last], seed=seed, window=window) for first, last in pairwise(ends)]
        if weights is None:
            weights = [number * len(part) for number, part in zip(options.repeats or (), parts, strict=True)]
        order = MixedOrder(parts, weights, seed=seed)
    if buckets is None:
        return order
    return BucketOrder(order, AspectRatios(shards), buckets, batch_size=batch_size, seed=seed)


class RemovalMasks:
    """int64 positions (B,) -> int64 (B,): the number of the sample whose object's mask is used, or -1 for none.

    A hole in the shape of another photo's object, over this photo's background, teaches to remove objects: the truth
    under the hole is not the object (object masks of other images: Zheng et al. 2022, "Cascaded Modulation GAN and
    Object-Aware Training"). The sample is another one of the window around the position, all equally likely, so that
    the same few shards stay open. It is a function of (seed, position) alone, as the order is.

    Args:
        order: position -> sample number.
        seed: seeds the choice.
        probability: the share (0..1) of positions with such a mask.
    """

    def __init__(self, order: Order, *, seed: int, probability: float) -> None:
        self.order, self.seed, self.probability = order, seed, probability

    def __call__(self, positions: Tensor) -> Tensor:
        """See the class."""
        words = draw(key(self.seed, positions, Stream.REMOVAL), 2)
        used = (words[:, 0] >> 8).float() * 2.0**-24 < self.probability
        return torch.where(used, self.order.another(positions, words[:, 1]), -1)


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
        removals: of `RemovalMasks`: positions -> numbers of the samples whose masks are used, or -1; None for no such.
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
        removals: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.shards = shards
        self.order = order
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.start = start
        self.steps = steps
        self.removals = removals

    def _positions(self, step: int) -> Tensor:
        return batch_positions(step, batch_size=self.batch_size, rank=self.rank, world=self.world, start=self.start)

    def _sizes(self, positions: Tensor) -> list[tuple[int, int] | None]:
        shapes = self.order.shape(positions)
        return [None] * len(positions) if shapes is None else [(height, width) for height, width in shapes.tolist()]

    def _read(self, position: int, sample: int, removal: int, size: tuple[int, int] | None) -> RawSample:
        raw = self.shards.read(sample)._replace(position=position, size=size)
        return raw if removal < 0 else raw._replace(removal=self.shards.read(removal))

    def _batch(self, positions: Tensor) -> Iterator[RawSample]:
        samples, sizes = self.order(positions), self._sizes(positions)
        removals = self.removals(positions) if self.removals else torch.full_like(samples, -1)
        if self.steps is not None:
            positions = positions.where(positions < len(self.order), PADDING)
        yield from map(self._read, positions.tolist(), samples.tolist(), removals.tolist(), sizes)

    def __iter__(self) -> Iterator[RawSample]:
        info = get_worker_info()
        ahead: list[int] = []
        for step in worker_steps(self.steps, info.id if info else 0, info.num_workers if info else 1):
            positions = self._positions(step)
            if ahead != (ahead := self.order.shards_ahead(int(positions[0]))):
                self.shards.prefetch(ahead)
            yield from self._batch(positions)
