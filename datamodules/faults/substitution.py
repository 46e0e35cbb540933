"""Substitution: another sample in the place of a bad one, the same whenever the run is repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from datamodules.faults.quarantine import BadSample, Quarantine
from datamodules.shards.shard_set import RawSample, ShardSet
from datamodules.stream.order import Order
from inpaint_module.randomness import Stream, draw, key

Decoder = Callable[[RawSample], dict[str, Any]]


class SubstitutingDecoder:
    """A decoder that puts another sample of the window in the place of one whose content is bad.

    The substitute is a function of (seed, position); crop, flip, mask and noise stay those of the position, and
    `__key__` is its own. A bad donor lends no mask. What happened is in the sample's "notes", a list of
    (kind, text), kinds "bad" and "substituted"; a clean sample has none.

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

    def _decode_without_bad_donor(self, raw: RawSample, notes: list[tuple[str, str]]) -> dict[str, Any]:
        try:
            return self.decoder(raw)
        except ValueError as error:
            if raw.donor is None or isinstance(error.__cause__, MemoryError):
                raise
            sample = self.decoder(raw._replace(donor=None))
            self._note(raw.donor, raw.position, error, notes)
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
        own_donor = raw.donor is not None and (raw.donor.shard, raw.donor.key) == (other.shard, other.key)
        return raw._replace(
            shard=other.shard, key=other.key, fields=other.fields, donor=None if own_donor else raw.donor
        )

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
                sample = self._decode_without_bad_donor(candidate, notes)
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
