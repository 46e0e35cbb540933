"""Seconds of calls that take turns, and CPU time of processes: what else the machine does falls on all alike."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

MILLISECOND = 1e-3


def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds of one call, with what it has set going on a GPU."""
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(
    calls: dict[str, Callable[[], Any]], device: str, *, seconds: float = 0.0, rounds: int | None = None
) -> dict[str, float]:
    """Median seconds of each call; they take turns, the first of which does not count.

    Args:
        calls: what to time, by name.
        device: "cuda" waits for the GPU after each call.
        seconds: go on for so long and at least 3 turns, where that takes no more than 6 times `seconds`.
        rounds: instead, the number of turns.
    """
    took: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(1001 if rounds is None else rounds + 1):
        for name, call in calls.items():
            took[name].append(timed(call, device))
        total = sum(map(sum, took.values()))
        enough = (turn >= 3 and total > seconds) or (turn >= 1 and total > 6 * seconds)
        if rounds is None and enough:
            break
    return {name: statistics.median(times[1:]) for name, times in took.items()}


def cpu_seconds(processes: Iterable[int]) -> float:
    """User and system time so far of these processes; 0 where the system does not tell (it is read from /proc)."""
    try:
        fields = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in processes]
    except OSError:
        return 0.0
    return sum(int(row[11]) + int(row[12]) for row in fields) / os.sysconf("SC_CLK_TCK")
