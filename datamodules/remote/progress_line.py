"""ProgressLine: how far a transfer is, on stderr, if it takes long.

Not tqdm: its lock is shared by forked processes, and a worker killed while it draws would leave the others waiting.
"""

from __future__ import annotations

import sys
import time

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
