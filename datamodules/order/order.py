"""Order: position -> sample. What every order of the stream can say; the plain one, and that of mixed sources.

    sample(p) = order of epoch p // N, at p % N

Shards are permuted, cut into windows of K shards, and the samples of each window are permuted among themselves: a
reader has K shards open at a time. The order comes from our own integer hash, since neither NumPy nor torch promises
its permutations across versions. Only the windows in use are computed, so that any position costs the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inpaint_module.randomness import Stream, fold_in, hash32, integers, key

PLAN_VERSION = 2  # of orders and crops: change it whenever the same seed gives others


def permutation(order_key: Tensor, length: int) -> Tensor:
    """0..length-1 in an order that is a pure function of `order_key` int64 (1,); returns int64 (length,)."""
    return torch.argsort(hash32(order_key, torch.arange(length)), stable=True)


class Order(ABC):
    """Which sample stands at each position of an endless stream: a pure function, equally quick at any position.

    `shard_count` is how many shards it draws from. What `_make_caches` makes is not pickled.
    """

    shard_count: int

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are, numbered from 0."""

    @abstractmethod
    def __call__(self, positions: Tensor) -> Tensor:
        """The number of the sample at each position >= 0; int64 (B,) -> int64 (B,)."""

    @abstractmethod
    def another(self, positions: Tensor, words: Tensor) -> Tensor:
        """Another sample of the window around each position, all equally likely by 32-bit `words`; int64 (B,).

        -1 where the window holds one sample only.
        """

    @abstractmethod
    def shards_ahead(self, position: int) -> list[int]:
        """The shards of the window around a position and of the next one, in the order of need, each once."""

    def shape(self, positions: Tensor) -> Tensor | None:
        """The pixels (H, W) of the sample at each position, int64 (B, 2); None for those of the data module."""
        return None

    def plan(self) -> dict[str, Any]:
        """What else than seed, window and shards must be equal for a position to mean the same sample."""
        return {}

    @abstractmethod
    def _make_caches(self) -> None:
        """Set the attributes that hold an `lru_cache`."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not hasattr(value, "cache_clear")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_caches()


class EpochPlan(NamedTuple):
    """The shards of one epoch: `shards` (S,) in their order, `windows` (W+1,) the first place of each window."""

    epoch_key: int
    shards: Tensor
    windows: Tensor


class SampleOrder(Order):
    """Every sample once per epoch, shuffled anew each time.

    Args:
        counts: samples of each shard.
        seed: seeds the order.
        window: how many shards are mixed with each other.
        shuffle: False gives the plain order.

    Example:
        >>> order = SampleOrder([2, 3], seed=0)
        >>> passes = order(torch.arange(10)).reshape(2, 5)  # two passes over both shards
        >>> passes.sort(1).values.tolist()
        [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    """

    def __init__(self, counts: Sequence[int], *, seed: int = 0, window: int = 8, shuffle: bool = True) -> None:
        self.counts = torch.as_tensor(counts, dtype=torch.int64)
        self.starts = self.counts.cumsum(0) - self.counts
        self.shard_count, self.length = len(self.counts), int(self.counts.sum())
        self.seed, self.window, self.shuffle = seed, window, shuffle
        self._make_caches()

    def __len__(self) -> int:
        return self.length

    def _make_caches(self) -> None:
        self._plan = lru_cache(maxsize=4)(self._plan_epoch)
        self._samples = lru_cache(maxsize=4)(self._permute_window)

    def _plan_epoch(self, epoch: int) -> EpochPlan:
        """Permute the shards and cut them into windows."""
        epoch_key = key(self.seed, torch.tensor([epoch]), Stream.ORDER)
        shards = permutation(epoch_key, self.shard_count) if self.shuffle else torch.arange(self.shard_count)
        ends = self.counts[shards].cumsum(0)
        last = torch.arange(self.window, len(shards) + self.window, self.window).clamp(max=len(shards)) - 1
        return EpochPlan(int(epoch_key), shards, torch.cat([torch.zeros(1, dtype=torch.int64), ends[last]]))

    def _window_shards(self, epoch: int, window: int) -> list[int]:
        return self._plan(epoch).shards[window * self.window : (window + 1) * self.window].tolist()

    def _permute_window(self, epoch: int, window: int) -> Tensor:
        """The sample numbers of one window, in their order."""
        shards = self._window_shards(epoch, window)
        samples = torch.cat([torch.arange(int(self.counts[s])) + self.starts[s] for s in shards])
        window_key = key(self._plan(epoch).epoch_key, torch.tensor([window]), Stream.ORDER)
        return samples[permutation(window_key, len(samples))]

    def _in_epoch(self, epoch: int, places: Tensor) -> Tensor:
        borders, samples = self._plan(epoch).windows, torch.empty_like(places)
        windows = torch.searchsorted(borders, places, right=True) - 1
        for window in windows.unique().tolist():
            here = windows == window
            samples[here] = self._samples(epoch, window)[places[here] - borders[window]]
        return samples

    def window_bounds(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """First position and length of the window around each position; the whole set if nothing is shuffled."""
        places = positions % self.length
        if not self.shuffle:
            return positions - places, torch.full_like(positions, self.length)
        first, length = torch.empty_like(positions), torch.empty_like(positions)
        epochs = positions // self.length
        for epoch in epochs.unique().tolist():
            here, borders = epochs == epoch, self._plan(epoch).windows
            window = torch.searchsorted(borders, places[here], right=True) - 1
            first[here] = epoch * self.length + borders[window]
            length[here] = borders[window + 1] - borders[window]
        return first, length

    def another(self, positions: Tensor, words: Tensor) -> Tensor:
        """See Order; without shuffle, any other sample of the set."""
        first, length = self.window_bounds(positions)
        shift = integers(words, 1, length.clamp(min=2))
        others = self(first + (positions - first + shift) % length)
        return torch.where(length > 1, others, -1)

    def shards_ahead(self, position: int) -> list[int]:
        """See Order; without shuffle, windows are `window` shards in a row."""
        epoch, place = divmod(position, self.length)
        window = int(torch.searchsorted(self._plan(epoch).windows, place, right=True)) - 1
        following = self._window_shards(epoch, window + 1) or self._window_shards(epoch + 1, 0)
        return list(dict.fromkeys(self._window_shards(epoch, window) + following))

    def __call__(self, positions: Tensor) -> Tensor:
        """See Order."""
        places = positions % self.length
        if not self.shuffle:
            return places
        epochs = positions // self.length
        samples = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            samples[here] = self._in_epoch(epoch, places[here])
        return samples


CYCLE = 4096  # positions after which the shares are exact
_MIX = 1  # so that a cycle's key is none of an epoch


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
        if empty := [number for number, order in enumerate(orders) if not len(order)]:
            raise ValueError(f"data.order.source_weights: expected samples in every source, none in number {empty}")
        self.orders, self.seed = list(orders), seed
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
        cycle_key = fold_in(key(self.seed, torch.tensor([cycle]), Stream.ORDER), _MIX)
        source = sources[permutation(cycle_key, CYCLE)]
        nth = torch.arange(CYCLE) - (self.counts.cumsum(0) - self.counts)[sources]
        place = torch.empty_like(source)
        place[source.argsort(stable=True)] = cycle * self.counts[sources] + nth
        return Cycle(source, place)

    def _parts(self, positions: Tensor) -> Iterator[tuple[Tensor, SampleOrder, Tensor, int]]:
        """Of each source with any of these positions: bool (B,) which, its order, their places in it, its offset."""
        cycles, places = positions // CYCLE, positions % CYCLE
        source, own = torch.empty_like(positions), torch.empty_like(positions)
        for cycle in cycles.unique().tolist():
            here, pattern = cycles == cycle, self._cycle(cycle)
            source[here], own[here] = pattern.source[places[here]], pattern.place[places[here]]
        for number in source.unique().tolist():
            here = source == number
            yield here, self.orders[number], own[here], self.offsets[number]

    def __call__(self, positions: Tensor) -> Tensor:
        """See Order."""
        samples = torch.empty_like(positions)
        for here, order, own, offset in self._parts(positions):
            samples[here] = order(own) + offset
        return samples

    def another(self, positions: Tensor, words: Tensor) -> Tensor:
        """See Order; of the same source."""
        samples = torch.empty_like(positions)
        for here, order, own, offset in self._parts(positions):
            others = order.another(own, words[here])
            samples[here] = torch.where(others < 0, -1, others + offset)
        return samples

    def shards_ahead(self, position: int) -> list[int]:
        """See Order; the sources' lists in turns."""
        cycle, place = divmod(position, CYCLE)
        before = self._cycle(cycle).source[:place].bincount(minlength=len(self.orders))
        sources = zip(self.orders, (cycle * self.counts + before).tolist(), self.shard_offsets[:-1], strict=True)
        ahead = [[shard + offset for shard in order.shards_ahead(own)] for order, own, offset in sources]
        return [shard for turn in zip_longest(*ahead) for shard in turn if shard is not None]

    def plan(self) -> dict[str, Any]:
        """The shares, and where one source's samples end."""
        return {"source_weights": (self.counts / CYCLE).tolist(), "source_samples": list(map(len, self.orders))}
