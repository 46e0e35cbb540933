"""Work in background threads that nobody waits for, in order; and a line on stderr for transfers that take long.

Not tqdm: its lock is shared by forked processes, and a worker killed while it draws would leave the others waiting.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Lock, Thread, current_thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Does `work` on items in at most `threads` threads of this process, which end when nothing waits.

    Starts nothing before the first item, may be pickled and forked: a copy begins with nothing to do.

    Args:
        work: called with one item; what it raises is dropped, since whoever needs the item meets it again.
        threads: how many items at a time.
    """

    def __init__(self, work: Callable[[T], object], *, threads: int = 1) -> None:
        self.work = work
        self.threads = threads
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = Lock()
        self._waiting: deque[T] = deque()
        self._running: list[Thread] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"work": self.work, "threads": self.threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def start(self, items: Iterable[T]) -> None:
        """Work on these items; they take the place of those that still wait."""
        if self._process != os.getpid():
            self._begin()
        with self._lock:
            self._waiting = deque(items)
            for _ in range(min(self.threads - len(self._running), len(self._waiting))):
                self._running.append(Thread(target=self._run, name="prefetch", daemon=True))
                self._running[-1].start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = [thread for thread in self._running if thread is not current_thread()]
                    return
                item = self._waiting.popleft()
            with suppress(Exception):
                self.work(item)

    def join(self, seconds: float | None = None) -> None:
        """Wait until nothing is being worked on, or so long for each thread."""
        for thread in list(self._running):
            thread.join(seconds)


_FIRST, _TERMINAL, _LOG = 1.0, 0.5, 30.0  # seconds before the first line, and between lines


class ProgressLine:
    """Called with the bytes held so far, writes now and then; `end` finishes the line.

    Args:
        name: of what is transferred.
        total: bytes.
    """

    def __init__(self, name: str, total: int) -> None:
        self.name = name
        self.total = total
        self._began = time.monotonic()
        self._next = self._began + _FIRST
        self._first: int | None = None
        self._terminal = sys.stderr.isatty()
        self._written = False

    def __call__(self, held: int) -> None:
        if self._first is None:
            self._first = held
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_TERMINAL if self._terminal else _LOG)
        rate = max(held - self._first, 0) / (now - self._began)
        text = f"{self.name}: {held / 1e6:.1f} of {self.total / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s"
        sys.stderr.write(f"\r{text}\x1b[K" if self._terminal else f"{text}\n")
        sys.stderr.flush()
        self._written = True

    def end(self) -> None:
        """Leave the cursor on a new line."""
        if self._written and self._terminal:
            sys.stderr.write("\n")
            sys.stderr.flush()
