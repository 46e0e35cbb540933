"""Stream: one endless stream with one integer of state, split over ranks and workers; other samples for bad ones."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.order.failures import BadSample, Quarantine
from datamodules.order.order import Order
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
        shards: where the samples are read; asked in advance for those that come next whenever a window begins.
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


_RECENT = 10_000
_AT_LEAST = 1_000  # a share of fewer says little: the first bad sample of a run is not 100 %
_REASONS = 3
_log = logging.getLogger(__name__)


class BadShareLimit:
    """Counts the bad samples among the last 10,000 of this process, and raises above a share.

    Fewer samples count as 1,000, so that a limit of .01 needs 11 bad ones, be they the first 11.

    Args:
        max_share: the limit, 0..1.
        path: the quarantine file, for messages.
    """

    def __init__(self, max_share: float, *, path: Path | None = None) -> None:
        self.max_share = max_share
        self.where = f"{path} names all" if path else "no file, since there is no run folder"
        self.samples = self.bad = 0
        self._batches: deque[tuple[int, int]] = deque()
        self._reasons: deque[str] = deque(maxlen=_REASONS)
        self._warned = False

    def __call__(self, bad: Sequence[str], samples: int) -> None:
        """Count a batch: the reasons of its bad samples, and its size. The first bad one gets a warning.

        Raises:
            ValueError: naming share, limit, file and the last reasons.
        """
        self._batches.append((samples, len(bad)))
        self.samples, self.bad = self.samples + samples, self.bad + len(bad)
        while self.samples - self._batches[0][0] >= _RECENT:
            old = self._batches.popleft()
            self.samples, self.bad = self.samples - old[0], self.bad - old[1]
        if bad:
            self._reasons.extend(bad)
            self._check()

    def _check(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("substituted a bad sample: %s (%s)", self._reasons[-1], self.where)
        if self.bad > self.max_share * max(self.samples, _AT_LEAST):
            raise ValueError(
                f"data.loading.max_bad_share: expected at most {self.max_share:.2%} bad samples, got {self.bad} among "
                f"the last {self.samples} ({self.where}); the last: {'; '.join(self._reasons)}"
            )


Decoder = Callable[[RawSample], dict[str, Any]]


class SubstitutingDecoder:
    """A decoder that puts another sample of the window in the place of one whose content is bad.

    The substitute is a function of (seed, position); crop, flip, mask and noise stay those of the position, and
    `__key__` is its own. Where the sample of `removal` is bad, its mask is not used. What happened is in the sample's
    "notes", a list of (kind, text), kinds "bad" and "substituted"; a clean sample has none.

    Args:
        decoder: raw sample -> sample, or ValueError for bad content.
        shards: where substitutes are read.
        order: of the stream.
        seed: seeds the choice.
        attempts: how many substitutes are tried; 0 raises at the first bad sample.
        quarantine: where bad samples are written down.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        shards: ShardSet,
        order: Order,
        seed: int,
        attempts: int,
        quarantine: Quarantine,
    ) -> None:
        self.decoder = decoder
        self.shards = shards
        self.order = order
        self.seed = seed
        self.attempts = attempts
        self.quarantine = quarantine

    def _decode_without_bad_removal(self, raw: RawSample, notes: list[tuple[str, str]]) -> dict[str, Any]:
        try:
            return self.decoder(raw)
        except ValueError as error:
            if raw.removal is None or isinstance(error.__cause__, MemoryError):
                raise
            sample = self.decoder(raw._replace(removal=None))
            self._note(raw.removal, raw.position, error, notes)
            return sample

    def _note(self, bad: RawSample, position: int, error: ValueError, notes: list[tuple[str, str]]) -> None:
        self.quarantine.add(BadSample(bad.shard, bad.key, position, str(error)))
        notes.append(("bad", str(error)))

    def _substitute(self, raw: RawSample, attempt: int) -> RawSample | None:
        """Another sample, to be decoded as this one; None if the window has no other."""
        position = torch.tensor([raw.position])
        words = draw(key(self.seed, position, Stream.SUBSTITUTE), 1, offset=attempt)[:, 0]
        number = int(self.order.another(position, words))
        if number < 0:
            return None
        other = self.shards.read(number)
        its_own = raw.removal is not None and (raw.removal.shard, raw.removal.key) == (other.shard, other.key)
        return other._replace(position=raw.position, size=raw.size, removal=None if its_own else raw.removal)

    def __call__(self, raw: RawSample) -> dict[str, Any]:
        """Decode the sample, else a substitute.

        Raises:
            ValueError: naming shard and key, if no substitute may be tried or all tried are bad.
        """
        notes: list[tuple[str, str]] = []
        candidate: RawSample | None = raw
        for attempt in range(self.attempts + 1):
            if candidate is None:
                raise ValueError(f"{notes[0][1]}; its window has no other sample to substitute")
            try:
                sample = self._decode_without_bad_removal(candidate, notes)
            except ValueError as error:
                if self.attempts == 0 or isinstance(error.__cause__, MemoryError):
                    raise
                self._note(candidate, raw.position, error, notes)
                candidate = self._substitute(raw, attempt)
                continue
            if candidate is not raw:
                notes.append(("substituted", f"{raw.key} by {candidate.key}"))
            return {**sample, "notes": [*sample.get("notes", ()), *notes]} if notes else sample
        raise ValueError(f"{notes[0][1]}; the {self.attempts} substitutes tried are bad too, the last: {notes[-1][1]}")
