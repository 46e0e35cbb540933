"""A process beside the tests', forked from them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def child(action: Callable[[], object]) -> Iterator[int]:
    """A process that has done something and waits to be killed."""
    ready, done = os.pipe()
    if not (pid := os.fork()):
        _act(action, done)
    os.close(done)
    assert os.read(ready, 1) == b"y"
    os.close(ready)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _act(action: Callable[[], object], done: int) -> NoReturn:
    try:
        action()
        os.write(done, b"y")
        signal.pause()
    finally:
        os._exit(1)
