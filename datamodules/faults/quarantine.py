"""Quarantine: a file with a line for every bad sample, so that none is left out in silence."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import get_worker_info

from inpaint_module.files import append_lines
from inpaint_module.redaction import redact

QUARANTINE = "quarantine.jsonl"
_REASON_CHARACTERS = 1000


class BadSample(NamedTuple):
    """A sample whose content cannot be used, the position in the stream that met it, and why."""

    shard: str
    key: str
    position: int
    reason: str


def append_line(path: Path, **content: Any) -> None:
    """Append one JSON line; several processes may share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_lines(path, json.dumps(content) + "\n")


class Quarantine:
    """Writes bad samples to `quarantine.jsonl`, each once per process; nothing reads the file but people.

    Args:
        folder: of the file, made when the first line is written; None writes none.
        rank: of this process and its workers, for the line.
    """

    def __init__(self, folder: Path | None, *, rank: int = 0) -> None:
        self.path = None if folder is None else Path(folder) / QUARANTINE
        self.rank = rank
        self._written: set[tuple[str, str]] = set()

    def add(self, bad: BadSample) -> None:
        """Write shard, key, position, reason, time (seconds since 1970), rank and worker (null: no worker)."""
        if self.path is None or (bad.shard, bad.key) in self._written:
            return
        self._written.add((bad.shard, bad.key))
        info = get_worker_info()
        reason = redact(bad.reason)[:_REASON_CHARACTERS]
        place = {"time": round(time.time(), 3), "rank": self.rank, "worker": info.id if info else None}
        append_line(self.path, **bad._replace(reason=reason)._asdict(), **place)
