"""ordered_map: a function over many items in several processes, results in the items' order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 4  # items in work for each process


def _start_server() -> None:
    """The process that workers are forked from; it and they ignore Ctrl-C, which must not kill one that starts."""
    resource_tracker.ensure_running()  # which would let signals in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """A killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # should somebody else have started the server
    threading.Thread(target=_end_with_parent, daemon=True).start()


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, preload: str
) -> Generator[Result, None, None]:
    """`function(item)` for every item, in their order, with a few items in work for each process and no more.

    Args:
        function: picklable; called in this process if `workers` is 1.
        items: taken as they are needed.
        workers: processes; they end with the iterator (close it), and when this process is killed.
        preload: the module that holds `function`, imported once for all workers.

    Raises:
        ValueError: if `workers` is not positive.
        OSError: if a worker dies, as when the memory runs out.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    if workers == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("forkserver")  # forking a process that has threads may hang
    context.set_forkserver_preload([preload])
    _start_server()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise OSError("a worker process died; is the memory full? Fewer workers need less") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
