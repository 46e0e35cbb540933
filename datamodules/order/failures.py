"""What fails, in files of the run folder: bad samples, and samples whose decoding has killed a worker.

The next start of the run takes other samples in the place of those that killed one.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import get_worker_info

from datamodules.shards.shard_set import RawSample
from inpaint_module.files import append_lines, redact
from inpaint_module.parsing import parse_json

_SLOT_BYTES = 16384
_HEAD = 3  # one byte "in use", two bytes of length


class Inflight(NamedTuple):
    """What a worker is decoding: its number, its process, a position, (shard, key) of sample and `removal`."""

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
        if raw.removal is not None:
            text += f"\0{raw.removal.shard}\0{raw.removal.key}"
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


CRASHES = "crashes.jsonl"
# signals that a decoder's own mistake raises; SIGKILL may come from outside, such as from a system out of memory
_OWN = {
    signal.strsignal(number) for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
}
_ENDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)  # of someone who ends the run
_ENOUGH = 2

_log = logging.getLogger(__name__)


class CrashLog:
    """Samples that were being decoded when their worker died, in `crashes.jsonl`.

    A run does not go on without the worker: it ends, and an exact resume loses nothing. `refused` are the samples that
    this start leaves out: those whose decoding ended in a crash of the decoder (a segmentation fault, say) once, and
    those whose worker was killed for another reason twice, since the first time may have been chance, such as a full
    memory. With a mask of another sample both samples are named, since nobody can tell them apart.

    Args:
        folder: of the file, read now and made when the first line is written; None writes none.
        rank: of this process, for the line.
    """

    def __init__(self, folder: Path | None, *, rank: int = 0) -> None:
        self.path = None if folder is None else Path(folder) / CRASHES
        self.rank = rank
        self.refused = _read_refused(self.path) if self.path and self.path.exists() else set()
        if self.refused:
            names = ", ".join(f"{shard}: {key}" for shard, key in sorted(self.refused))
            _warn_once(f"{self.path}: left out, since they have killed workers: {names}")

    def explain(self, error: BaseException, markers: InflightMarkers) -> None:
        """Write down what workers that died were decoding, and add it to the error as a note.

        Nothing happens if no worker has died. It may be called again with the same error.
        """
        for death in markers.take_dead():
            if -death.exit_code in _ENDED:
                continue
            if death.inflight is None:
                error.add_note(
                    f"A worker died ({death.cause}) while it was not decoding a sample. Is there too little memory, in "
                    "all or in /dev/shm? Then fewer data.num_workers may help. The same command goes on from the "
                    "newest checkpoint"
                )
                continue
            self._write(death.inflight, death.cause)
            error.add_note(f"{death.inflight} when it died ({death.cause}). {self._advice(death.cause)}")

    def _write(self, inflight: Inflight, cause: str) -> None:
        if self.path is None:
            return
        place = {"time": round(time.time(), 3), "rank": self.rank, "worker": inflight.worker}
        for shard, key in inflight.samples:
            append_line(self.path, shard=shard, key=key, position=inflight.position, cause=cause, **place)

    def _advice(self, cause: str) -> str:
        if self.path is None:
            return "Remove the sample"
        when = "the next start" if cause in _OWN else "a start after a second such death"
        return f"{self.path} names it: {when} takes another sample in its place. Run the same command again"


@lru_cache(maxsize=32)
def _warn_once(text: str) -> None:
    """Training and validation read the same file."""
    _log.warning("%s", text)


def _read_refused(path: Path) -> set[tuple[str, str]]:
    """The samples to leave out; lines that are cut short or of another kind are passed over, and said once."""
    counts: Counter[tuple[str, str]] = Counter()
    wrong = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            row = parse_json(line, f"line {number}", strict=False)
            cause = row.get("cause")
            enough = cause is not None and cause.text() in _OWN
            counts[row["shard"].text(), row["key"].text()] += _ENOUGH if enough else 1
        except ValueError:
            wrong.append(f"line {number}: expected a sample that killed a worker, passed over: {line[:80]!r}")
    if wrong:
        more = f", and {len(wrong) - 1} other lines" if wrong[1:] else ""
        _warn_once(f"{path}, {wrong[0]}{more}")
    return {sample for sample, count in counts.items() if count >= _ENOUGH}


class WatchedDecoder:
    """A decoder that marks the sample it is at, and refuses samples that have killed workers.

    Args:
        decoder: raw sample -> sample.
        markers: where the sample being decoded is noted.
        refused: (shard, key) of samples to refuse.
    """

    def __init__(
        self,
        decoder: Callable[[RawSample], dict[str, Any]],
        markers: InflightMarkers,
        refused: set[tuple[str, str]],
    ) -> None:
        self.decoder = decoder
        self.markers = markers
        self.refused = refused

    def __call__(self, raw: RawSample) -> dict[str, Any]:
        """Decode the sample.

        Raises:
            ValueError: naming shard and key, for a sample that has killed a worker, and what the decoder raises.
        """
        for each in (raw, raw.removal) if self.refused else ():
            if each is not None and (each.shard, each.key) in self.refused:
                raise ValueError(f"{each.shard}: sample {each.key!r}: has killed a worker that decoded it")
        self.markers.mark(raw)
        try:
            return self.decoder(raw)
        finally:
            self.markers.clear()


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
