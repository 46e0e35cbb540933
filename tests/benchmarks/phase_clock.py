"""Where the time of a loop goes: marks between its phases, read at the end."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch


class PhaseClock:
    """Seconds between marks, summed by the phase that each mark begins.

    On a GPU the marks are events on its stream and nothing waits for them: host and device overlap as they do without
    a clock, and a phase's time is what the GPU worked for it or stood still in it. The phases add up to the whole.

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str):
        self._cuda = device == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def enter(self, phase: str) -> None:
        """End the phase before and begin this one."""
        self._marks.append((phase, self._now()))

    def restart(self) -> None:
        """Forget all marks, with nothing left to do on the device."""
        if self._cuda:
            torch.cuda.synchronize()
        self._marks.clear()

    def stop(self) -> dict[str, float]:
        """End the last phase; seconds of each."""
        self.enter("")
        if self._cuda:
            torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for (phase, start), (_, end) in pairwise(self._marks):
            took = start.elapsed_time(end) / 1000 if self._cuda else end - start
            seconds[phase] = seconds.get(phase, 0.0) + took
        self._marks.clear()
        return seconds

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
