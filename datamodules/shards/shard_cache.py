"""ShardCache: whole remote shards in a bounded local folder, shared by all processes of a machine.

A file's name is the shard's sha256 and its name: two shards `0.tar` never meet, a shard that changes on the server
gets another file, and one shard at two addresses has one. Only bytes of the right size and sha256 get that name, and
what lay there before is hashed once in a run: the folder may be shared with others. What is still being downloaded has
the suffix `.part` and is gone on with, by whoever comes next, after a kill.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from datamodules.shards.downloads import DISK_FULL, RetryPolicy, download, fetch
from datamodules.shards.local_files import (
    CheckedFiles,
    Prefetcher,
    open_in_use,
    open_own,
    open_to_write,
    release,
    remove_unused,
)
from datamodules.shards.manifest import Shard, parse_index
from datamodules.shards.tar_index import ShardIndex
from datamodules.shards.transports import ProgressLine, file_name, with_path
from inpaint_module.files import atomic_write_text, redact

_OURS = re.compile(r"[0-9a-f]{40}-.*")  # never touch what else lies in the folder
_PART = re.compile(r".*\.(\d+)\.part")
_log = logging.getLogger(__name__)


class CacheFullError(OSError):
    """Nothing more can be evicted: all that lies in the cache is in use."""


class _Entry(NamedTuple):
    """A file of the cache: when it was last used, its bytes in the end, and those on the disk now."""

    used: int
    path: Path
    size: int
    held: int


def _touch(file: int) -> None:
    """Note that a file is used now."""
    with suppress(PermissionError):  # another user's, in a shared folder
        os.utime(file)


def default_folder() -> Path:
    """The environment variable INPAINT_CACHE, or `~/.cache/inpaint_module/shards`."""
    return Path(os.path.expanduser(os.environ.get("INPAINT_CACHE") or "~/.cache/inpaint_module/shards"))


class ShardCache:
    """Opens remote shards as local files, downloading each once a machine.

    Args:
        folder: made if missing; null for the environment variable INPAINT_CACHE or ~/.cache/inpaint_module/shards.
        max_bytes: the files that were used longest ago go when there would be more. Give it three windows of shards.
        policy: when a transfer is given up.
        prefetch_threads: how many shards each process downloads at a time before they are needed.

    Raises:
        ValueError: if `max_bytes` is not positive.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        max_bytes: int = 50_000_000_000,
        policy: RetryPolicy = RetryPolicy(),  # noqa: B008, immutable
        prefetch_threads: int = 1,
    ) -> None:
        if max_bytes < 1:
            raise ValueError(f"data.loading.cache_bytes: expected at least 1, got {max_bytes}")
        self.folder = default_folder() if folder is None else Path(os.path.expanduser(folder))
        self.max_bytes = max_bytes
        self.policy = policy
        self._checked = CheckedFiles()
        self._ahead: frozenset[str] = frozenset()
        self._prefetcher = Prefetcher(self._land_ahead, threads=prefetch_threads)

    def path(self, shard: Shard) -> Path:
        """Where a remote shard lies once it is here."""
        return self.folder / f"{shard.digest[:40]}-{re.sub(r'[^A-Za-z0-9._-]', '_', file_name(redact(shard.path)))}"

    def check(self, shards: Iterable[Shard]) -> None:
        """Refuse shards that cannot be cached.

        Raises:
            ValueError: if one is larger than the whole cache.
        """
        for shard in shards:
            if shard.bytes > self.max_bytes:
                raise ValueError(
                    f"data.loading.cache_bytes: expected room for {redact(shard.path)} of {shard.bytes} bytes, "
                    f"got {self.max_bytes}"
                )

    def open(self, shard: Shard) -> int:
        """A remote shard's file, for reading: nobody evicts it until `file_locks.release`.

        Raises:
            CacheFullError: if all that lies in the cache is in use.
            RemoteError: if the shard cannot be had.
            ValueError: if the disk, or the cache, is too small for it.
        """
        self.check([shard])
        self._make_folder()
        path = self.path(shard)
        while True:
            if (file := open_in_use(path)) is None:
                file = self._land(shard, wait=True)
            if file is not None and self._is_right(file, shard):
                _touch(file)
                return file
            if file is not None:
                self._discard(file, path)

    def _is_right(self, file: int, shard: Shard) -> bool:
        """Whether a file of the cache is the shard; hashed once in a run."""
        return os.fstat(file).st_size == shard.bytes and self._checked.is_right(file, shard.digest)

    @staticmethod
    def _discard(file: int, path: Path) -> None:
        _log.warning("%s: is not what its sha256 says; it is removed and downloaded again", path)
        path.unlink(missing_ok=True)
        release(file)

    def index(self, shard: Shard) -> ShardIndex:
        """The index of a remote shard, by its index file beside it; kept here too. Needs no download of the shard.

        Raises:
            RemoteError: if it cannot be had.
            ValueError: if it is not this shard's.
        """
        self._make_folder()
        path = self.path(shard).with_suffix(".index.json")
        if (file := open_own(path, os.O_RDONLY)) is not None:
            try:
                with open(file, "rb") as content:
                    index = parse_index(content.read(), str(path), shard)
                    _touch(file)
                    return index
            except ValueError as error:
                _log.warning("%s; it is downloaded again", error)
        url = with_path(shard.path, lambda old: re.sub(r"\.[^./]*$", "", old) + ".index.json")
        text = fetch(url, lambda text: parse_index(text, redact(url), shard) and text, self.policy)
        with self._no_eviction():  # nor another process that writes it
            atomic_write_text(path, text)
        return parse_index(text, redact(url), shard)

    def prefetch(self, shards: Iterable[Shard]) -> None:
        """Download these in the background, in this order, instead of those asked for before.

        Errors are left to `open`.
        """
        shards = list(shards)
        self._ahead = frozenset(self.path(shard).name for shard in shards)
        self._prefetcher.start(shards)

    def join(self, seconds: float | None = None) -> None:
        """Wait for the downloads in the background."""
        self._prefetcher.join(seconds)

    def _land_ahead(self, shard: Shard) -> None:
        self._make_folder()
        path = self.path(shard)
        if (file := open_in_use(path)) is not None and not self._is_right(file, shard):
            self._discard(file, path)
            file = None
        if file is None:
            file = self._land(shard, wait=False)
        if file is not None:
            release(file)

    def _land(self, shard: Shard, *, wait: bool) -> int | None:
        """Download a shard and open it.

        None if another process has downloaded it meanwhile or, without `wait`, is doing so.
        """
        path = self.path(shard)
        part = path.with_name(f"{path.name}.{shard.bytes}.part")
        file = open_to_write(part, wait=wait)
        if file is None:
            return None
        try:
            if path.exists():
                part.unlink()
                return None
            self._fill(part, file, shard, ahead=not wait)
            with self._no_eviction():
                self._checked.note(file, shard.digest)
                part.replace(path)
                release(file)
                file = None
                return open_in_use(path)
        finally:
            if file is not None:
                release(file)

    def _fill(self, part: Path, file: int, shard: Shard, *, ahead: bool) -> None:
        """Make room, then download; ahead of need quietly and with fewer tries."""
        self._make_room(part, shard, keep=self._ahead if ahead else frozenset())
        policy = self.policy._replace(attempts=min(2, self.policy.attempts)) if ahead else self.policy
        try:
            with self._progress(shard, quiet=ahead) as report, FileIO(file, "a+", closefd=False) as sink:
                download(shard.path, sink, size=shard.bytes, sha256=shard.digest, policy=policy, report=report)
            os.fsync(file)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise ValueError(f"data.loading.cache_dir: no room on the disk of {self.folder}: {error}") from error
            raise

    def _make_folder(self) -> None:
        if self.folder.parts[:1] == ("~",):
            raise ValueError(f"data.loading.cache_dir: expected a folder: this user has no home for {self.folder}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"data.loading.cache_dir: cannot make the folder {self.folder}: {error}") from error

    def _entries(self) -> Iterator[_Entry]:
        for path in self.folder.iterdir():
            if not _OURS.fullmatch(path.name):
                continue
            try:
                status = path.lstat()
            except FileNotFoundError:  # another process has removed or renamed it
                continue
            part = _PART.fullmatch(path.name)
            size = int(part[1]) if part else status.st_size
            yield _Entry(status.st_mtime_ns, path, size, status.st_size)

    def _make_room(self, part: Path, shard: Shard, keep: frozenset[str]) -> None:
        """Evict until a begun download has its room; one process at a time."""
        with self._no_eviction():
            entries = sorted(self._entries())
            excess = sum(entry.size for entry in entries) - self.max_bytes
            lacking = shard.bytes - part.lstat().st_size - shutil.disk_usage(self.folder).free
            for entry in entries:
                if excess <= 0 and lacking <= 0:
                    return
                if entry.path != part and entry.path.name not in keep and remove_unused(entry.path):
                    excess -= entry.size
                    lacking -= entry.held
            if excess > 0 or lacking > 0:
                self._refuse(part, shard, excess, lacking)

    @contextmanager
    def _no_eviction(self) -> Iterator[None]:
        """No other process evicts meanwhile."""
        lock = open_to_write(self.folder / "evict.lock")
        try:
            yield
        finally:
            if lock is not None:
                release(lock)

    def _refuse(self, part: Path, shard: Shard, excess: int, lacking: int) -> None:
        if part.lstat().st_size == 0:
            part.unlink()
        if excess <= 0:
            raise ValueError(
                f"data.loading.cache_dir: expected room on the disk of {self.folder} for {redact(shard.path)} of "
                f"{shard.bytes} bytes, got {lacking} too few"
            )
        raise CacheFullError(
            f"{self.folder}: expected room for {redact(shard.path)} of {shard.bytes} bytes, and all but "
            f"{max(0, shard.bytes - excess)} of the {self.max_bytes} bytes of data.loading.cache_bytes is in use; "
            f"raise it by {excess} bytes or more, or let less be in use: each of the data.num_workers keeps open the "
            "shards of two windows, of data.order.window shards each"
        )

    @contextmanager
    def _progress(self, shard: Shard, *, quiet: bool) -> Iterator[Callable[[int], object]]:
        """A progress line, if the download takes over a second and no other process shows one."""
        lock = None if quiet else open_to_write(self.folder / "progress.lock", wait=False)
        if lock is None:
            yield lambda held: None
            return
        line = ProgressLine(file_name(redact(shard.path)), shard.bytes)
        try:
            yield line
        finally:
            line.end()
            release(lock)
