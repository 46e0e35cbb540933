"""Recovery: batches from workers that are started anew where one of them dies."""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from datamodules.faults.crashes import CrashLog
from datamodules.faults.inflight import InflightMarkers

POLL_SECONDS = 1.0  # how often a waiting loader looks whether its workers live
_MOST_DEATHS = 8
_RECENT = 1000  # batches
_ENDED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}  # by someone, not by a sample

_log = logging.getLogger(__name__)


class Death(NamedTuple):
    """A worker that is gone; `exit_code` is negative for a signal."""

    worker: int
    exit_code: int

    def __str__(self) -> str:
        code = self.exit_code
        return f"worker {self.worker} died ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


class WorkersDied(RuntimeError):
    """Some workers are gone, and with them the iterator."""

    def __init__(self, deaths: list[Death]) -> None:
        super().__init__("; ".join(map(str, deaths)))
        self.deaths = deaths


def start_workers(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """A loader's iterator, whose dead workers are found by `next_batch`.

    torch would raise from a signal handler, that is, from whatever line the main process is at; so its record of these
    workers is taken from it.
    """
    iterator = iter(loader)
    signal_handling._remove_worker_pids(id(iterator))
    iterator._worker_pids_set = False  # type: ignore[attr-defined]
    return iterator


def stop_workers(iterator: Any) -> None:
    """End them now: a garbage collector that comes for the iterator first stops the threads that would tell them."""
    iterator._shutdown_workers()


def _with_notes(batch: dict[str, Any], crashes: list[str]) -> dict[str, Any]:
    return {**batch, "notes": {**batch.get("notes", {}), "crash": crashes}} if crashes else batch


def find_deaths(iterator: Any, wait: float = 0.0) -> list[Death]:
    """The workers that are gone, after at most `wait` seconds."""
    end = time.monotonic() + wait
    while True:
        codes = [(number, worker.exitcode) for number, worker in enumerate(iterator._workers)]
        deaths = [Death(number, code) for number, code in codes if code is not None]
        if deaths or time.monotonic() >= end:
            return deaths
        time.sleep(0.05)


def next_batch(iterator: Any, markers: InflightMarkers, stall_timeout: float) -> dict[str, Any]:
    """The next batch of a loader whose own `timeout` is POLL_SECONDS.

    Raises:
        WorkersDied: some are gone.
        TimeoutError: none came in `stall_timeout` seconds (0: wait for ever).
        Exception: what a worker raised.
    """
    begin = time.monotonic()
    while True:
        try:
            return next(iterator)
        except StopIteration:
            raise
        except Exception as error:
            waiting = isinstance(error, RuntimeError) and str(error).startswith("DataLoader timed out")
            if deaths := find_deaths(iterator, wait=0.0 if waiting else 1.0):  # a broken pipe may be seen first
                raise WorkersDied(deaths) from error
            if not waiting or not _pins(iterator):
                raise
        if stall_timeout and time.monotonic() - begin >= stall_timeout:
            message = _stall(markers, len(iterator._workers), stall_timeout)
            for worker in iterator._workers:
                worker.kill()  # torch would wait for each
            raise TimeoutError(message)


def _pins(iterator: Any) -> bool:
    """Whether the thread that pins memory, if there is one, lives."""
    thread = getattr(iterator, "_pin_memory_thread", None)
    return thread is None or thread.is_alive()


def _stall(markers: InflightMarkers, workers: int, seconds: float) -> str:
    found = [(number, markers.read(number)) for number in range(workers)]
    doing = [
        f"worker {number} "
        + (f"decodes {each.samples} for position {each.position}" if each else "is not decoding: it reads, or waits")
        for number, each in found
    ]
    return f"data.stall_timeout: expected a batch within {seconds:g} s, got none: {'; '.join(doing)}"


class WorkerRecovery:
    """Batches as if no worker had died: each death is written down, and the workers start anew.

    They start at the first batch that has not been delivered. A sample that has killed two becomes one of the crash
    log's killers, which the decoder substitutes.

    Args:
        start: the number of batches delivered so far -> an iterator of `start_workers` that goes on there.
        markers: of the workers.
        crashes: where deaths are written down.
        stall_timeout: seconds to wait for a batch; 0 waits for ever.
    """

    def __init__(
        self,
        start: Callable[[int], Iterator[dict[str, Any]]],
        *,
        markers: InflightMarkers,
        crashes: CrashLog,
        stall_timeout: float = 0.0,
    ) -> None:
        self.start = start
        self.markers = markers
        self.crashes = crashes
        self.stall_timeout = stall_timeout
        self.delivered = 0
        self._deaths: deque[int] = deque()  # how many batches had been delivered at each

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises RuntimeError for a death that no sample explains, and for the ninth within 1,000 batches."""
        notes: list[str] = []
        iterator = self.start(self.delivered)
        try:
            while True:
                try:
                    batch = next_batch(iterator, self.markers, self.stall_timeout)
                except StopIteration:
                    return
                except WorkersDied as died:
                    notes += self._record(died)
                    stop_workers(iterator)
                    self.markers.reset()
                    iterator = self.start(self.delivered)
                    continue
                self.delivered += 1
                yield _with_notes(batch, notes)
                notes = []
        finally:
            stop_workers(iterator)

    def _record(self, died: WorkersDied) -> list[str]:
        """Write the deaths down; one text for each."""
        texts = []
        for death in died.deaths:
            inflight = self.markers.read(death.worker)
            if -death.exit_code in _ENDED or inflight is None:
                raise RuntimeError(
                    f"{death} while it was {'decoding' if inflight else 'not decoding'}: no sample is to blame. "
                    "Not enough memory, in all or in /dev/shm? Then fewer data.num_workers may help"
                ) from died
            self.crashes.add(inflight, worker=death.worker, exit_code=death.exit_code)
            names = " with the mask of ".join(f"{shard}: sample {key!r}" for shard, key in inflight.samples)
            texts.append(f"{death} at position {inflight.position}, decoding {names}")
            _log.warning("%s; the workers start anew", texts[-1])
            self._deaths.append(self.delivered)
        self._check(texts[-1], died)
        return texts

    def _check(self, last: str, died: WorkersDied) -> None:
        while self.delivered - self._deaths[0] > _RECENT:
            self._deaths.popleft()
        if len(self._deaths) > _MOST_DEATHS:
            raise RuntimeError(
                f"expected at most {_MOST_DEATHS} deaths of workers within {_RECENT} batches, got "
                f"{len(self._deaths)} (see {self.crashes.path}); the last: {last}"
            ) from died
