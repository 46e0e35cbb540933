"""What is examined: the data module and the precision that config files name, and batches, read until one is late."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lightning.pytorch import LightningDataModule

from inpaint_module.commands.config_files import make_parts, read_config, read_parts


def data_from_configs(configs: Sequence[Path], overrides: Sequence[str] = ()) -> LightningDataModule:
    """The data module of config files, the later over the earlier, and of options such as `--data.batch_size=2`.

    Raises:
        ValueError: no data in them.
    """
    values = read_parts(configs, overrides, data=LightningDataModule)
    return make_parts(values, data=LightningDataModule).data


def precision_of(configs: Sequence[Path]) -> str:
    """`trainer.precision` of config files, of which the last that names one counts."""
    trainers = [read_config(path).get("trainer") or {} for path in configs]
    return str(next((each["precision"] for each in reversed(trainers) if each.get("precision")), "32-true"))


T = TypeVar("T")


class StalledError(TimeoutError):
    """Nothing came in time."""


class _Item(NamedTuple):
    value: Any = None
    seconds: float = 0.0
    error: BaseException | None = None
    last: bool = False


def items_in_time(source: Callable[[], Iterable[T]], timeout: float) -> Iterator[tuple[T, float]]:
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
