"""Batches of one shape: the samples of an order, grouped by aspect ratio, none left out."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.stream.buckets import Buckets
from datamodules.stream.order import Order, permutation
from inpaint_module.randomness import Stream, fork, key

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
