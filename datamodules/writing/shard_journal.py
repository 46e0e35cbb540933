"""ShardJournal: what a run that writes shards has finished, so that the same run can go on after a kill."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datamodules.shards.manifest import JOURNAL, MANIFEST, ManifestRow, index_path, parse_row, write_index, write_rows
from datamodules.shards.tar_index import ScannedTar
from datamodules.writing.shard_writer import PART
from inpaint_module.files import sync_folder
from inpaint_module.parsing import Parsed, parse_json_lines

VERSION = 1


@dataclass(frozen=True)
class FinishedShard:
    """One tar on the disk: the number of the first source that is not in it or before it, the reasons of those that
    were left out since the tar before, and the account of those in it."""

    row: ManifestRow
    next_source: int
    skipped: list[str]
    account: dict[str, Any] = field(default_factory=dict)


def _finished(line: Parsed) -> FinishedShard:
    skipped, account = line.get("skipped"), line.get("account")
    return FinishedShard(
        parse_row(line["row"]),
        line["next_source"].whole(),
        [reason.text() for reason in skipped.items()] if skipped else [],
        {name: part.value for name, part in account.members().items()} if account else {},
    )


class ShardJournal:
    """The file `make_shards.journal` of an unfinished folder: the run's arguments, then a line per finished shard.

    A line is written when its tar and index file are on the disk, so that what it says is true after any kill; a line
    that is cut short counts as not written. While it is open no other process can open it.

    Args:
        folder: the shards' folder, without a finished set.
        arguments: all that the bytes of the shards depend on, as JSON knows it.

    Raises:
        ValueError: if another run is at work there, or if an unfinished one had other arguments or lost its shards.
    """

    def __init__(self, folder: Path, arguments: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self.shards: list[FinishedShard] = []
        self._file = self.path.open("a+", encoding="utf-8", errors="surrogateescape")
        try:
            self._lock()
            self._restore(dict(arguments))
        except BaseException:
            self._file.close()
            raise

    @property
    def next_source(self) -> int:
        """Where to go on."""
        return self.shards[-1].next_source if self.shards else 0

    @property
    def skipped(self) -> list[str]:
        """Why sources before `next_source` were left out."""
        return [reason for shard in self.shards for reason in shard.skipped]

    def _lock(self) -> None:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # is not inherited by workers, unlike flock
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(f"{self.folder}: expected no other run there, got one that is still at work") from error

    def _restore(self, arguments: dict[str, Any]) -> None:
        self._file.seek(0)
        text = self._file.read()
        whole = text[: text.rfind("\n") + 1]  # what follows the last line break was cut short
        if not whole:
            self._file.truncate(0)
            self._append(json.dumps({"version": VERSION, "arguments": arguments}) + "\n")
            return
        first, *lines = parse_json_lines(whole, str(self.path), advice="empty the folder")
        before = {name: value.value for name, value in first["arguments"].members().items()}
        if changed := [name for name in {**before, **arguments} if before.get(name) != arguments.get(name)]:
            now = ", ".join(f"{name} was {before.get(name)!r}, is {arguments.get(name)!r}" for name in changed)
            raise ValueError(
                f"{self.folder}: holds an unfinished run with other arguments ({now}); "
                "start it with the same to go on, or empty the folder"
            )
        self.shards = list(map(_finished, lines))
        for shard in self.shards:
            self._check(shard.row)
        self._file.truncate(len(whole.encode(errors="surrogateescape")))

    def _check(self, row: ManifestRow) -> None:
        path = self.folder / row.name
        part = path.with_name(row.name + PART)
        sizes = [place.stat().st_size for place in (part, path) if place.exists()]
        if sizes[:1] != [row.bytes]:
            raise ValueError(f"{part}: expected {row.bytes} bytes by {JOURNAL}, got {sizes}; empty the folder")

    def _append(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()
        os.fsync(self._file.fileno())

    def add(
        self,
        name: str,
        scanned: ScannedTar,
        *,
        next_source: int,
        skipped: Sequence[str],
        account: Mapping[str, Any] | None = None,
    ) -> None:
        """Note a tar that is on the disk; `skipped` are all reasons so far, `account` is of its samples."""
        write_index(index_path(self.folder / name), scanned.index, scanned.bytes)
        row = ManifestRow(name, len(scanned.index.keys), scanned.bytes, scanned.sha256)
        shard = FinishedShard(row, next_source, list(skipped[len(self.skipped) :]), dict(account or {}))
        self._append(json.dumps(asdict(shard)) + "\n")
        self.shards.append(shard)

    def publish(self) -> None:
        """Write the manifest, give the tars their names and end the journal.

        The manifest comes first: until the last tar has its name, a reader finds one missing and refuses the set.
        """
        write_rows(self.folder, [shard.row for shard in self.shards])
        for shard in self.shards:
            path = self.folder / shard.row.name
            part = path.with_name(shard.row.name + PART)
            if part.exists():
                part.replace(path)
        sync_folder(self.folder)
        self.path.unlink()

    def discard(self) -> None:
        """Remove all that the run wrote."""
        for path in [*self.folder.glob(f"*.tar{PART}"), *(self.folder / shard.row.name for shard in self.shards)]:
            path.unlink(missing_ok=True)
            index_path(path.with_name(path.name.removesuffix(PART))).unlink(missing_ok=True)
        self.path.unlink()

    def close(self) -> None:
        """Let another run open it."""
        self._file.close()


def open_journal(folder: Path, arguments: Mapping[str, Any]) -> ShardJournal:
    """The journal of a new run, or of an unfinished one of the same arguments; the folder is made if missing.

    Raises:
        ValueError: if the folder has shards already, or see `ShardJournal`.
    """
    if not (folder / JOURNAL).exists() and ((folder / MANIFEST).exists() or any(folder.glob("*.tar"))):
        raise ValueError(f"{folder}: expected a folder without shards, got one that has some; remove them first")
    folder.mkdir(parents=True, exist_ok=True)
    return ShardJournal(folder, arguments)
