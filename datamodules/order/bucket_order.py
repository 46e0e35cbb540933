"""Aspect-ratio buckets: image shapes of nearly the same number of pixels, and which one suits an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.order.order import Order, permutation
from datamodules.shards.shard_set import ShardSet
from inpaint_module.randomness import Stream, fork, key
from inpaint_module.redaction import redact


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


_BUCKETS = 2  # tells a group's key from an epoch's


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
        self.order = order
        self.aspects = aspects
        self.buckets = buckets
        self.batch_size = batch_size
        self.seed = seed
        self.group = group
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
        group_key = fork(key(self.seed, torch.tensor([number]), Stream.ORDER), _BUCKETS)
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
