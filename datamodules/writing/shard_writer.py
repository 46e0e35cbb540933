"""Samples into numbered tars, the same bytes for the same samples; a journal, so that a killed run can go on."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datamodules.shards.manifest import JOURNAL, MANIFEST, ManifestRow, index_path, parse_row, write_index, write_rows
from datamodules.shards.tar_index import ScannedTar, ShardIndex
from inpaint_module.files import sync_folder
from inpaint_module.parsing import Parsed, parse_json_lines

PART = ".part"  # until a set is complete its tars are called NUMBER.tar.part


class _HashedFile(io.FileIO):
    """A file written once from its start, or none; hashes and counts what is written."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(os.devnull if path is None else path, "w")
        self.sha256, self.size = hashlib.sha256(), 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.sha256.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[super().write(view) :]
        return len(data)


class ShardWriter:
    """Writes samples into numbered tars, a new one whenever the next sample would not fit.

    A tar that is returned as finished is on the disk; it is called NUMBER.tar.part, so that a reader does not take it
    for one of a complete set.

    Args:
        folder: where the tars go; None writes none, to learn what they would be.
        shard_bytes: start a new tar before it grows over this.
        samples_per_shard: start a new tar after so many samples; None for no limit.
        number: of the first tar.
    """

    def __init__(
        self, folder: Path | None, shard_bytes: int, samples_per_shard: int | None, *, number: int = 0
    ) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.samples_per_shard = samples_per_shard
        self.number = number
        self._file: _HashedFile | None = None
        self._tar: tarfile.TarFile | None = None
        self._index = ShardIndex([], [], [])

    @property
    def name(self) -> str:
        """What the tar in work will be called."""
        return f"{self.number:06d}.tar"

    def write(self, key: str, fields: Mapping[str, bytes], size: tuple[int, int]) -> tuple[str, ScannedTar] | None:
        """Add one sample, its fields sorted by name, without times or owners.

        Returns:
            The name and content of the tar that this sample did not fit into any more, if any.
        """
        finished = None
        if self._tar is not None and self._is_full(sum(len(data) + 1024 for data in fields.values())):
            finished = self.finish()
        if self._tar is None:
            self._file = _HashedFile(None if self.folder is None else self.folder / (self.name + PART))
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        places = {field: self._add(self._tar, f"{key}.{field}", data) for field, data in sorted(fields.items())}
        self._index.keys.append(key)
        self._index.fields.append(places)
        if self._index.sizes is not None:
            self._index.sizes.append(size)
        return finished

    def _is_full(self, size: int) -> bool:
        assert self._tar is not None
        return self._tar.offset + size > self.shard_bytes or len(self._index.keys) == self.samples_per_shard

    def _add(self, tar: tarfile.TarFile, name: str, data: bytes) -> tuple[int, int]:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        start = tar.offset + len(member.tobuf(tarfile.GNU_FORMAT))
        tar.addfile(member, io.BytesIO(data))
        tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header in memory
        return start, len(data)

    def finish(self) -> tuple[str, ScannedTar] | None:
        """End the tar in work and bring it to the disk; its name and content, None if there is none."""
        if self._tar is None or self._file is None:
            return None
        self._tar.close()
        if self.folder is not None:
            os.fsync(self._file.fileno())
        scanned = ScannedTar(self._index, self._file.size, self._file.sha256.hexdigest())
        finished = (self.name, scanned)
        self.close()
        self.number += 1
        return finished

    def close(self) -> None:
        """Leave the tar in work as it is."""
        if self._file is not None:
            self._file.close()
        self._file, self._tar, self._index = None, None, ShardIndex([], [], [])


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
