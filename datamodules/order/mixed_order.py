"""Mixed sources: several orders in one stream, each with its share of the positions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.order.order import Order, SampleOrder, permutation
from inpaint_module.randomness import Stream, fork, key

CYCLE = 4096  # positions after which the shares are exact
_MIX = 1  # tells a cycle's key from an epoch's


def cycle_counts(weights: Sequence[float]) -> list[int]:
    """How many of 4096 positions each source gets, by largest remainder; their sum is 4096.

    Raises:
        ValueError: if a weight is not positive and finite, or so small that its source would get no position.
    """
    bad = [weight for weight in weights if not (math.isfinite(weight) and weight > 0)]
    if bad or not weights:
        raise ValueError(f"data.order.source_weights: expected positive finite numbers, got {list(weights)}")
    total = sum(map(Fraction, weights))
    exact = [Fraction(weight) / total * CYCLE for weight in weights]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda source: counts[source] - exact[source])
    for source in by_remainder[: CYCLE - sum(counts)]:
        counts[source] += 1
    if not all(counts):
        raise ValueError(
            f"data.order.source_weights: expected at least 1/{CYCLE} of their sum each, so {float(total / CYCLE):.3g} "
            f"or more, got {list(weights)}"
        )
    return counts


class Cycle(NamedTuple):
    """4096 positions: the `source` of each, and its `place` in the source's own stream; int64 (4096,) both."""

    source: Tensor
    place: Tensor


class Part(NamedTuple):
    """The positions of one source: `here` bool (B,) says which, `own` int64 are their places in its own stream."""

    here: Tensor
    order: SampleOrder
    own: Tensor
    offset: int


class MixedOrder(Order):
    """Several sources side by side: every 4096 positions hold each source's exact share, in a new pattern each time.

    Each source goes through its own endless stream without gap or repeat, at its own pace: one with few samples and
    a large weight comes round more often. Samples and shards are numbered through the sources, in their order.

    Args:
        orders: one for each source.
        weights: a positive number for each source; only their ratios count.
        seed: seeds the pattern.

    Raises:
        ValueError: naming data.order.source_weights, if they do not fit the sources.
    """

    def __init__(self, orders: Sequence[SampleOrder], weights: Sequence[float], *, seed: int) -> None:
        if len(orders) != len(weights):
            raise ValueError(
                f"data.order.source_weights: expected one number per source, {len(orders)} in all, got {list(weights)}"
            )
        empty = [number for number, order in enumerate(orders) if not len(order)]
        if empty:
            raise ValueError(f"data.order.source_weights: expected samples in every source, none in number {empty}")
        self.orders = list(orders)
        self.seed = seed
        self.counts = torch.tensor(cycle_counts(weights))
        self.offsets = [0, *accumulate(len(order) for order in orders)]
        self.shard_offsets = [0, *accumulate(order.shard_count for order in orders)]
        self.shard_count = self.shard_offsets[-1]
        self._make_caches()

    def __len__(self) -> int:
        return self.offsets[-1]

    def _make_caches(self) -> None:
        self._cycle = lru_cache(maxsize=4)(self._permute_cycle)

    def _permute_cycle(self, cycle: int) -> Cycle:
        """The pattern of one cycle; the n-th place of a source in it has n sources' places before it."""
        sources = torch.arange(len(self.orders)).repeat_interleave(self.counts)
        cycle_key = fork(key(self.seed, torch.tensor([cycle]), Stream.ORDER), _MIX)
        source = sources[permutation(cycle_key, CYCLE)]
        nth = torch.arange(CYCLE) - (self.counts.cumsum(0) - self.counts)[sources]
        place = torch.empty_like(source)
        place[source.argsort(stable=True)] = cycle * self.counts[sources] + nth
        return Cycle(source, place)

    def _parts(self, positions: Tensor) -> Iterator[Part]:
        """The sources that have any of these positions."""
        cycles, places = positions // CYCLE, positions % CYCLE
        source, own = torch.empty_like(positions), torch.empty_like(positions)
        for cycle in cycles.unique().tolist():
            here = cycles == cycle
            pattern = self._cycle(cycle)
            source[here], own[here] = pattern.source[places[here]], pattern.place[places[here]]
        for number in source.unique().tolist():
            here = source == number
            yield Part(here, self.orders[number], own[here], self.offsets[number])

    def __call__(self, positions: Tensor) -> Tensor:
        """See Order."""
        samples = torch.empty_like(positions)
        for part in self._parts(positions):
            samples[part.here] = part.order(part.own) + part.offset
        return samples

    def another(self, positions: Tensor, words: Tensor) -> Tensor:
        """See Order; of the same source."""
        samples = torch.empty_like(positions)
        for part in self._parts(positions):
            others = part.order.another(part.own, words[part.here])
            samples[part.here] = torch.where(others < 0, -1, others + part.offset)
        return samples

    def shards_ahead(self, position: int) -> list[int]:
        """See Order; the sources' lists in turns."""
        cycle, place = divmod(position, CYCLE)
        before = self._cycle(cycle).source[:place].bincount(minlength=len(self.orders))
        ahead = [
            [shard + offset for shard in order.shards_ahead(own)]
            for order, own, offset in zip(
                self.orders, (cycle * self.counts + before).tolist(), self.shard_offsets[:-1], strict=True
            )
        ]
        return [shard for turn in zip_longest(*ahead) for shard in turn if shard is not None]

    def plan(self) -> dict[str, Any]:
        """The shares, and where one source's samples end."""
        samples = [len(order) for order in self.orders]
        return {"source_weights": (self.counts / CYCLE).tolist(), "source_samples": samples}
