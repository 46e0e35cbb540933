"""Aspect-ratio buckets: image shapes of about as many pixels each; batches of one shape; which order a config means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.order.order import MixedOrder, Order, SampleOrder, permutation
from datamodules.shards.shard_set import ShardSet
from inpaint_module.files import redact
from inpaint_module.parsing import check_at_least
from inpaint_module.randomness import Stream, fold_in, key


def bucket_shapes(pixels: int, *, step: int, max_aspect: float) -> list[tuple[int, int]]:
    """Every (H, W) that cannot grow by a step: multiples of `step`, at most `pixels` in area, at most `max_aspect`.

    Sorted by aspect W / H, from tall to wide; empty if not even one step by one step fits.
    """

    def fits(height: int, width: int) -> bool:
        return height * width * step**2 <= pixels and max(height / width, width / height) <= max_aspect

    def is_largest(height: int, width: int) -> bool:
        grown = ((height + 1, width), (height, width + 1), (height + 1, width + 1))
        return fits(height, width) and not any(fits(*shape) for shape in grown)

    sides = range(1, math.isqrt(int(pixels * max_aspect)) // step + 1)
    shapes = [(height * step, width * step) for height in sides for width in sides if is_largest(height, width)]
    return sorted(shapes, key=lambda shape: shape[1] / shape[0])


class Buckets:
    """The shapes near a pixel budget.

    Args:
        image_size: (H, W) pixels, whose product is the budget.
        step: sides are multiples of it, in pixels.
        max_aspect: the longer side is at most this times the shorter.

    Raises:
        ValueError: naming the argument, if no shape fits.
    """

    def __init__(self, image_size: tuple[int, int], *, step: int = 64, max_aspect: float = 2.0) -> None:
        if step < 1:
            raise ValueError(f"data.order.bucket_step: expected at least 1 pixel, got {step}")
        if not 1 <= max_aspect < math.inf:
            raise ValueError(f"data.order.bucket_max_aspect: expected at least 1 and finite, got {max_aspect}")
        self.image_size = image_size
        self.step = step
        self.max_aspect = max_aspect
        self.shapes = bucket_shapes(math.prod(image_size), step=step, max_aspect=max_aspect)
        if not self.shapes:
            height, width = image_size
            raise ValueError(
                f"data.image_size: expected at least {step} x {step} pixels in all, one order.bucket_step each way, "
                f"got {height} x {width}"
            )
        aspects = torch.tensor([width / height for height, width in self.shapes], dtype=torch.float64)
        self._borders = aspects[:-1] * aspects[1:]  # squares of the geometric means: no logarithm, alike everywhere

    def __len__(self) -> int:
        return len(self.shapes)

    def nearest(self, aspects: Tensor) -> Tensor:
        """The number of the shape whose log aspect is nearest; float aspects W / H (B,) -> int64 (B,)."""
        return torch.searchsorted(self._borders, aspects.double().square())


class AspectRatios:
    """int64 sample numbers (B,) -> float32 (B,): width / height of the upright image.

    An image whose header cannot be read counts as square; the decoder will refuse it.

    Args:
        shards: whose indexes are read, each when one of its samples is asked for.
    """

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        self._starts = torch.tensor(shards.starts)

    def _sizes(self, number: int) -> list[tuple[int, int]]:
        """Width and height of each image of one shard."""
        if (sizes := self.shards.index(number).sizes) is None:
            raise ValueError(
                f"data.order.bucket_step: {redact(self.shards.shards[number].path)}: expected image sizes in its "
                "index, got none; write it with inpaint shards index"
            )
        return sizes

    def __call__(self, samples: Tensor) -> Tensor:
        """See the class.

        Raises:
            ValueError: naming the shard, if its index has no image sizes.
        """
        shards = torch.searchsorted(self._starts, samples, right=True) - 1
        aspects = torch.empty(len(samples))
        for number in shards.unique().tolist():
            sizes, here = self._sizes(number), shards == number
            rows = (samples[here] - self._starts[number]).tolist()
            aspects[here] = torch.tensor([w / h if w > 0 and h > 0 else 1.0 for w, h in (sizes[row] for row in rows)])
        return aspects


_BUCKETS = 2  # so that a group's key is none of an epoch


class Group(NamedTuple):
    """One group of G positions: the `places` (G,) in the order below, their `samples` (G,), each batch's `bucket`."""

    places: Tensor
    samples: Tensor
    bucket: Tensor


class BucketOrder(Order):
    """Another order's samples, so that every batch has one shape, whatever the ranks and workers.

    The order below is cut into groups of `group` batches. The samples of a group are sorted by bucket and cut into
    batches, each with the bucket of its middle sample; then the batches are shuffled. No sample is left out or
    repeated, none waits longer than its group; where two buckets meet, one batch holds samples of both.

    A batch of the stream is a batch of one shape if the stream starts at a multiple of `batch_size`.

    Args:
        order: position -> sample number.
        aspects: sample numbers int64 (B,) -> width / height of the upright images, positive, float (B,).
        buckets: the shapes.
        batch_size: samples of one batch on one rank.
        seed: seeds the order of the batches.
        group: batches whose samples are sorted with each other.
    """

    def __init__(
        self,
        order: Order,
        aspects: Callable[[Tensor], Tensor],
        buckets: Buckets,
        *,
        batch_size: int,
        seed: int,
        group: int = 64,
    ) -> None:
        self.order, self.aspects, self.buckets = order, aspects, buckets
        self.batch_size, self.seed, self.group = batch_size, seed, group
        self.shard_count = order.shard_count
        self._shapes = torch.tensor(buckets.shapes)
        self._make_caches()

    def __len__(self) -> int:
        return len(self.order)

    def _make_caches(self) -> None:
        self._group = lru_cache(maxsize=4)(self._arrange)
        self._ahead = lru_cache(maxsize=4)(self._shards_of_group)

    def _places(self, group: int) -> Tensor:
        """The positions of one group, in the order below."""
        length = self.group * self.batch_size
        return torch.arange(group * length, (group + 1) * length)

    def _arrange(self, number: int) -> Group:
        """Sort by bucket, cut into batches, shuffle these."""
        places = self._places(number)
        samples = self.order(places)
        nearest = self.buckets.nearest(self.aspects(samples))
        group_key = fold_in(key(self.seed, torch.tensor([number]), Stream.ORDER), _BUCKETS)
        batches = nearest.argsort(stable=True).view(self.group, self.batch_size)
        batches = batches[permutation(group_key, self.group)]
        middle = batches[:, (self.batch_size - 1) // 2]
        return Group(places[batches.flatten()], samples[batches.flatten()], nearest[middle])

    def _gather(self, positions: Tensor) -> Group:
        """What the groups say of these positions: each field int64 (B,)."""
        length = self.group * self.batch_size
        groups, rows = positions // length, positions % length
        found = Group(*(torch.empty_like(positions) for _ in Group._fields))
        for number in groups.unique().tolist():
            here = groups == number
            group, row = self._group(number), rows[here]
            found.places[here], found.samples[here] = group.places[row], group.samples[row]
            found.bucket[here] = group.bucket[row // self.batch_size]
        return found

    def __call__(self, positions: Tensor) -> Tensor:
        """See Order."""
        return self._gather(positions).samples

    def shape(self, positions: Tensor) -> Tensor:
        """See Order."""
        return self._shapes[self._gather(positions).bucket]

    def another(self, positions: Tensor, words: Tensor) -> Tensor:
        """See Order; of the window in the order below, whatever its aspect."""
        return self.order.another(self._gather(positions).places, words)

    def _shards_of_group(self, number: int) -> list[int]:
        firsts = self._places(number)[:: self.batch_size].tolist()
        return list(dict.fromkeys(shard for first in firsts for shard in self.order.shards_ahead(first)))

    def shards_ahead(self, position: int) -> list[int]:
        """See Order; those of the whole group, and of the window after it."""
        return list(self._ahead(position // (self.group * self.batch_size)))

    def plan(self) -> dict[str, Any]:
        """The buckets, the batch size, and what the order below says."""
        buckets = {"image_size": list(self.buckets.image_size), "step": self.buckets.step}
        buckets |= {"max_aspect": self.buckets.max_aspect, "group": self.group}
        return {**self.order.plan(), "buckets": buckets, "batch_size": self.batch_size}


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
