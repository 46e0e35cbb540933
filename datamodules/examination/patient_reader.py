"""Reading with patience: what a source brings, item by item, until it says nothing for too long."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class StalledError(TimeoutError):
    """Nothing came in time."""


class _Item(NamedTuple):
    value: Any = None
    seconds: float = 0.0
    error: BaseException | None = None
    last: bool = False


def patiently(source: Callable[[], Iterable[T]], timeout: float) -> Iterator[tuple[T, float]]:
    """What `source()` yields, each with the seconds it took, read on a thread that is left behind if it stalls.

    Raises:
        StalledError: after `timeout` seconds without an item.
        Exception: of the source.
    """
    items: queue.Queue[_Item] = queue.Queue()

    def read() -> None:
        try:
            begin = time.perf_counter()
            for value in source():
                items.put(_Item(value, time.perf_counter() - begin))
                begin = time.perf_counter()
            items.put(_Item(last=True))
        except Exception as error:
            items.put(_Item(error=error))

    threading.Thread(target=read, name="patient reader", daemon=True).start()
    while True:
        try:
            item = items.get(timeout=timeout)
        except queue.Empty:
            raise StalledError(f"nothing came for {timeout:g} s") from None
        if item.error is not None:
            raise item.error
        if item.last:
            return
        yield item.value, item.seconds
