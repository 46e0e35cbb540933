"""ProgressLine: nothing for what is quick, one line for what is not."""

from __future__ import annotations

import io
import sys

import pytest

from datamodules.shards import transports as progress_line
from datamodules.shards.transports import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, reports: list[tuple[float, int]]) -> str:
    """What is written when `held` is reported at these seconds."""
    seconds = iter([0.0, *(at for at, _ in reports)])
    monkeypatch.setattr(progress_line.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(sys, "stderr", stderr)
    line = ProgressLine("0.tar", 20_000_000)
    for _, held in reports:
        line(held)
    line.end()
    return stderr.getvalue()


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = [(0.1, 1_000_000), (0.9, 20_000_000)]
    assert report(monkeypatch, Terminal(), quick) == ""
    slow = [(0.5, 1_000_000), (2.0, 5_000_000), (2.1, 6_000_000), (4.0, 13_000_000)]
    lines = ["0.tar: 5.0 of 20.0 MB, 2.0 MB/s", "0.tar: 13.0 of 20.0 MB, 3.0 MB/s"]
    assert report(monkeypatch, Terminal(), slow) == "".join(f"\r{line}\x1b[K" for line in lines) + "\n"
    assert report(monkeypatch, io.StringIO(), slow) == lines[0] + "\n"
    assert report(monkeypatch, io.StringIO(), [*slow, (40.0, 16_000_000)]).endswith(
        "\n0.tar: 16.0 of 20.0 MB, 0.4 MB/s\n"
    )
