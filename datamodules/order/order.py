"""Order: position -> sample. What every order of the stream can say, and the plain one.

    sample(p) = order of epoch p // N, at p % N

Shards are permuted, cut into windows of K shards, and the samples of each window are permuted among themselves: a
reader has K shards open at a time. The order comes from our own integer hash, since neither NumPy nor torch promises
its permutations across versions. Only the windows in use are computed, so that any position costs the same.

Removal masks: of which other sample the object's mask goes onto the image at each position.

A hole in the shape of another photo's object, over this photo's background, teaches to remove objects: the truth under
the hole is not the object (object masks of other images: Zheng et al. 2022, "Cascaded Modulation GAN and
Object-Aware Training").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inpaint_module.randomness import Stream, draw, hash32, integers, key

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
        self.shard_count = len(self.counts)
        self.length = int(self.counts.sum())
        self.seed = seed
        self.window = window
        self.shuffle = shuffle
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


class RemovalMasks:
    """int64 positions (B,) -> int64 (B,): the number of the sample whose object's mask is used, or -1 for none.

    It is another sample of the window around the position, all equally likely, so that the same few shards stay
    open. It is a function of (seed, position) alone, as the order is.

    Args:
        order: position -> sample number.
        seed: seeds the choice.
        probability: the share (0..1) of positions with such a mask.
    """

    def __init__(self, order: Order, *, seed: int, probability: float) -> None:
        self.order = order
        self.seed = seed
        self.probability = probability

    def __call__(self, positions: Tensor) -> Tensor:
        """See the class."""
        words = draw(key(self.seed, positions, Stream.REMOVAL), 2)
        used = (words[:, 0] >> 8).float() * 2.0**-24 < self.probability
        return torch.where(used, self.order.another(positions, words[:, 1]), -1)
