"""How much memory a call takes above what is held when it begins: a GPU's by its allocator, else the process's."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

MEBIBYTE = 2**20
Result = TypeVar("Result")


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Its result in a process of its own, whose high-water mark no earlier work has raised."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def rise(call: Callable[[], Any], device: str) -> int:
    """Bytes that `call` takes at its peak above what is in use before it.

    On the CPU the high-water mark of the process rises by them, so they mean something in a fresh one alone
    (`in_fresh_process`), after a small call of the same kind that loads the libraries.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held
    give_back()
    # imports may have peaked above what is in use: fill that up first, or the call rises in their shadow
    ballast = torch.ones(max(high_water() - in_use(), 0) // 4 + MEBIBYTE)
    before = high_water()
    call()
    return high_water() - before + 0 * int(ballast[0])


def give_back() -> None:
    """Return to the system what the C library keeps of freed memory, in which the next call would not be seen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def high_water() -> int:
    """Bytes that this process has held at most."""
    # getrusage's mark begins with that of the process which started this one; Linux's own does not
    told = _status("VmHWM")
    return told or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_use() -> int:
    """Bytes that this process holds now; the high-water mark where the system does not tell."""
    return _status("VmRSS") or high_water()


def _status(field: str) -> int:
    """Bytes, from Linux's /proc; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
