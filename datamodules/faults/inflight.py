"""In-flight markers: which sample each worker is decoding, so that a sample that kills its worker is known by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from torch.utils.data import get_worker_info

from datamodules.shards.shard_set import RawSample

_SLOT_BYTES = 16384
_HEAD = 3  # one byte "in use", two bytes of length


class Inflight(NamedTuple):
    """What a worker is decoding: its number, its process, a position, (shard, key) of the sample and of its donor."""

    worker: int
    pid: int
    position: int
    samples: list[tuple[str, str]]

    def __str__(self) -> str:
        names = " with the mask of ".join(f"{shard}: sample {key!r}" for shard, key in self.samples)
        return f"worker {self.worker} was decoding {names} for position {self.position}"


class Death(NamedTuple):
    """A worker that is gone: its exit code, negative for a signal, and what it was decoding, if anything."""

    exit_code: int
    inflight: Inflight | None

    @property
    def cause(self) -> str:
        """`Segmentation fault`, or `exit code 3`."""
        code = self.exit_code
        return (signal.strsignal(-code) if code < 0 else None) or f"exit code {code}"


class InflightMarkers:
    """One slot of shared memory for each worker, which outlives it; about a microsecond per sample.

    Nothing of it is on a disk: a kill of the whole process group leaves no sample under suspicion.

    Args:
        workers: number of slots.
    """

    def __init__(self, workers: int) -> None:
        self._slots = torch.zeros(workers, _SLOT_BYTES, dtype=torch.uint8).share_memory_()
        self._mine: memoryview | None = None
        self._processes: list[BaseProcess] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mine": None, "_processes": []}

    def watch(self, processes: Sequence[BaseProcess]) -> None:
        """The processes in which workers run, for `take_dead`."""
        self._processes = list(processes)

    def mark(self, raw: RawSample) -> None:
        """Note, in a worker, the sample that it is about to decode; elsewhere there is nothing to note."""
        if self._mine is None:
            if (info := get_worker_info()) is None:
                return
            self._mine = memoryview(self._slots[info.id].numpy())
        text = f"{os.getpid()}\0{raw.position}\0{raw.shard}\0{raw.key}"
        if raw.donor is not None:
            text += f"\0{raw.donor.shard}\0{raw.donor.key}"
        data = text.encode(errors="surrogateescape")[: _SLOT_BYTES - _HEAD]
        self._mine[1 : _HEAD + len(data)] = len(data).to_bytes(2) + data
        self._mine[0] = 1  # last, so that a slot in use is whole

    def clear(self) -> None:
        """Note that the decoding has ended."""
        if self._mine is not None:
            self._mine[0] = 0

    def read(self, worker: int) -> Inflight | None:
        """What a worker is, or was, decoding; None if nothing."""
        slot = self._slots[worker].numpy().tobytes()
        if not slot[0]:
            return None
        end = _HEAD + int.from_bytes(slot[1:_HEAD])
        pid, position, *names = slot[_HEAD:end].decode(errors="surrogateescape").split("\0")
        return Inflight(worker, int(pid), int(position), list(zip(names[::2], names[1::2], strict=False)))

    def in_use(self) -> list[Inflight]:
        """What all workers are, or were, decoding."""
        return [found for worker in range(len(self._slots)) if (found := self.read(worker)) is not None]

    def take_dead(self) -> list[Death]:
        """The watched processes that have died, each once."""
        dead = [process for process in self._processes if process.exitcode]
        self._processes = [process for process in self._processes if process not in dead]
        decoding = {found.pid: found for found in self.in_use()}
        return [Death(process.exitcode or 0, decoding.get(process.pid or 0)) for process in dead]

    def reset(self) -> None:
        """Clear all slots, before new workers start."""
        self._slots.zero_()
        self._processes = []
