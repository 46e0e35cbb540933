"""Crashes: which samples have killed workers, in this run and in those before it in the same folder."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from pathlib import Path

from datamodules.faults.inflight import Inflight
from datamodules.faults.quarantine import append_line

CRASHES = "crashes.jsonl"
_ENOUGH = 2  # a worker may die once of something else, such as a full memory

_log = logging.getLogger(__name__)


class CrashLog:
    """Counts the workers that each sample has killed, in `crashes.jsonl`; `killers` are those that did so twice.

    A decoder treats killers as bad samples. With a donor of a mask both samples are blamed, since nobody can tell.

    Args:
        folder: of the file, read now and made when the first line is written; None keeps the counts in memory.
        rank: of this process, for the line.

    Raises:
        ValueError: if the file has a line of another kind.
    """

    def __init__(self, folder: Path | None, *, rank: int = 0) -> None:
        self.path = None if folder is None else Path(folder) / CRASHES
        self.rank = rank
        self.counts = Counter(_read(self.path) if self.path and self.path.exists() else [])
        self.killers = {sample for sample, count in self.counts.items() if count >= _ENOUGH}
        if self.killers:
            _log.warning(
                "%s: %d samples have killed workers twice and are substituted: %s",
                self.path,
                len(self.killers),
                ", ".join(f"{shard}: {key}" for shard, key in sorted(self.killers)),
            )

    def add(self, inflight: Inflight, *, worker: int, exit_code: int) -> None:
        """Write down the death of a worker that was decoding; `exit_code` is negative for a signal."""
        for shard, key in inflight.samples:
            self.counts[shard, key] += 1
            if self.counts[shard, key] >= _ENOUGH:
                self.killers.add((shard, key))
            if self.path is not None:
                place = {"time": round(time.time(), 3), "rank": self.rank, "worker": worker}
                content = {"shard": shard, "key": key, "position": inflight.position, "exit_code": exit_code}
                append_line(self.path, **content, **place)


def _read(path: Path) -> list[tuple[str, str]]:
    samples = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            content = json.loads(line)
            samples.append((str(content["shard"]), str(content["key"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected a crash, got {line[:80]!r}; delete the line") from error
    return samples
