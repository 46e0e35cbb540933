"""Bad samples: a line in a file for each, another sample in its place, an end of the run if they are too many."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import get_worker_info

from datamodules.order.order import Order
from datamodules.shards.shard_set import RawSample, ShardSet
from inpaint_module.files import append_lines
from inpaint_module.randomness import Stream, draw, key
from inpaint_module.redaction import redact

QUARANTINE = "quarantine.jsonl"
_REASON_CHARACTERS = 1000


class BadSample(NamedTuple):
    """A sample whose content cannot be used, the position in the stream that met it, and why."""

    shard: str
    key: str
    position: int
    reason: str


def append_line(path: Path, **content: Any) -> None:
    """Append one JSON line; several processes may share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_lines(path, json.dumps(content) + "\n")


class Quarantine:
    """Writes bad samples to `quarantine.jsonl`, each once per process; nothing reads the file but people.

    Args:
        folder: of the file, made when the first line is written; None writes none.
        rank: of this process and its workers, for the line.
    """

    def __init__(self, folder: Path | None, *, rank: int = 0) -> None:
        self.path = None if folder is None else Path(folder) / QUARANTINE
        self.rank = rank
        self._written: set[tuple[str, str]] = set()

    def add(self, bad: BadSample) -> None:
        """Write shard, key, position, reason, time (seconds since 1970), rank and worker (null: no worker)."""
        if self.path is None or (bad.shard, bad.key) in self._written:
            return
        self._written.add((bad.shard, bad.key))
        info = get_worker_info()
        reason = redact(bad.reason)[:_REASON_CHARACTERS]
        place = {"time": round(time.time(), 3), "rank": self.rank, "worker": info.id if info else None}
        append_line(self.path, **bad._replace(reason=reason)._asdict(), **place)


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
        self._told = False

    def __call__(self, bad: Sequence[str], samples: int) -> None:
        """Count a batch: the reasons of its bad samples, and its size. The first bad one is told of.

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
        if not self._told:
            self._told = True
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
