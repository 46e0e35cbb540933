"""Local files: locks against removal while a process reads, files found right once; work on them in the background.

A lock is shared while a file is read, exclusive while it is written or removed; the kernel frees both when a process
is killed. The lock is on the file itself, so that no lock files are left behind. An open file that a forked child has
inherited keeps its lock: whoever releases one says so to the kernel (LOCK_UN) and does not trust the closing alone.

The folder may be shared with others: links are not followed, and what has the name of a file of the cache and is none
is removed.

What was found right stands in shared memory, not on a disk where others could change it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import mmap
import os
import stat
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread, current_thread
from typing import Any, Generic, TypeVar

_POLL_SECONDS = 0.02
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # without waiting, should it be a pipe
_log = logging.getLogger(__name__)


def release(file: int) -> None:
    """Unlock and close, though a forked child may still have it open."""
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _try_lock(file: int) -> bool:
    """Lock a file for ourselves, if nobody uses it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one that has this name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def open_own(path: Path, flags: int) -> int | None:
    """A descriptor of a file of the cache; None if there is none.

    A link, a pipe or a second name of another file is not opened but removed.

    Raises:
        ValueError: if it cannot be removed, being a folder or another user's.
    """
    while True:
        file = None
        try:
            file = os.open(path, flags | _FLAGS, 0o666)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise
        if file is not None:
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and (flags & os.O_ACCMODE == os.O_RDONLY or status.st_nlink < 2):
                return file
            os.close(file)
        _remove_foreign(path)


def _remove_foreign(path: Path) -> None:
    _log.warning("%s: expected a file of the shard cache, got a link or another kind of file; it is removed", path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(
            f"data.loading.cache_dir: {path}: expected a file of the shard cache, got a link, a folder or "
            f"another kind of file that cannot be removed: {error.strerror}; remove it, or name another folder"
        ) from error


def open_in_use(path: Path) -> int | None:
    """A descriptor for reading, in use until `release`; None if there is no such file."""
    while True:
        file = open_own(path, os.O_RDONLY)
        if file is None:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if _is_at(file, path):
            return file
        release(file)


def open_to_write(path: Path, *, wait: bool = True) -> int | None:
    """A descriptor to append to a file, new or begun, that nobody else writes, until `release`.

    Without `wait`, None if somebody else writes it.
    """
    while True:
        file = open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        if file is None:  # the folder is gone
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if _try_lock(file):
            if _is_at(file, path):
                return file
            release(file)
            continue
        os.close(file)
        if not wait:
            return None
        # asked again by name: waiting for this very file would not end if it is renamed and then kept in use
        time.sleep(_POLL_SECONDS)


def remove_unused(path: Path) -> bool:
    """Remove a file unless it is in use; whether it is gone."""
    file = open_own(path, os.O_RDONLY)
    if file is None:
        return True
    try:
        if not _try_lock(file):
            return False
        if _is_at(file, path):
            path.unlink()
        return True
    finally:
        release(file)


_SLOTS, _BYTES, _PROBES = 1 << 16, 8, 64


class CheckedFiles:
    """Remembers files that were found right, for this process and those that it forks; a new start checks anew.

    A copy by pickle begins empty. Beyond some 60,000 files they are checked at every opening.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._memory = os.memfd_create("inpaint-checked-files", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._memory)
        os.truncate(self._memory, _SLOTS * _BYTES)
        self._table = mmap.mmap(self._memory, _SLOTS * _BYTES)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin()

    def is_right(self, file: int, sha256: str) -> bool:
        """Whether an open file has this sha256; it is read unless it was found right before.

        Other processes that ask for the same file meanwhile wait for the answer.
        """
        mark = _mark(file, sha256)
        if self._knows(mark):
            return True
        place = int.from_bytes(mark[:4], "big")
        fcntl.lockf(self._memory, fcntl.LOCK_EX, 1, place)  # freed by the kernel if the process is killed
        try:
            if not self._knows(mark):
                if _sha256(file) != sha256:
                    return False
                self._note(mark)
            return True
        finally:
            fcntl.lockf(self._memory, fcntl.LOCK_UN, 1, place)

    def note(self, file: int, sha256: str) -> None:
        """Remember that an open file has this sha256."""
        self._note(_mark(file, sha256))

    def _slot(self, mark: bytes) -> int | None:
        """Where a mark is or may be written; None if there is no room."""
        first = int.from_bytes(mark, "big") % _SLOTS
        for number in range(first, first + _PROBES):
            at = number % _SLOTS * _BYTES
            if self._table[at : at + _BYTES] in (mark, bytes(_BYTES)):
                return at
        return None

    def _knows(self, mark: bytes) -> bool:
        at = self._slot(mark)
        return at is not None and self._table[at : at + _BYTES] == mark

    def _note(self, mark: bytes) -> None:
        if (at := self._slot(mark)) is not None:
            self._table[at : at + _BYTES] = mark


def _mark(file: int, sha256: str) -> bytes:
    status = os.fstat(file)
    text = f"{sha256}\0{status.st_dev}\0{status.st_ino}\0{status.st_size}"
    return hashlib.sha256(text.encode()).digest()[:_BYTES]


def _sha256(file: int) -> str:
    with open(file, "rb", closefd=False) as content:
        content.seek(0)
        return hashlib.file_digest(content, "sha256").hexdigest()


T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Does `work` on items in at most `threads` threads of this process, which end when nothing waits.

    Starts nothing before the first item, may be pickled and forked: a copy begins with nothing to do.

    Args:
        work: called with one item; what it raises is dropped, since whoever needs the item meets it again.
        threads: how many items at a time.
    """

    def __init__(self, work: Callable[[T], object], *, threads: int = 1) -> None:
        self.work = work
        self.threads = threads
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = Lock()
        self._waiting: deque[T] = deque()
        self._running: list[Thread] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"work": self.work, "threads": self.threads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def start(self, items: Iterable[T]) -> None:
        """Work on these items; they take the place of those that still wait."""
        if self._process != os.getpid():
            self._begin()
        with self._lock:
            self._waiting = deque(items)
            for _ in range(min(self.threads - len(self._running), len(self._waiting))):
                self._running.append(Thread(target=self._run, name="prefetch", daemon=True))
                self._running[-1].start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = [thread for thread in self._running if thread is not current_thread()]
                    return
                item = self._waiting.popleft()
            with suppress(Exception):
                self.work(item)

    def join(self, seconds: float | None = None) -> None:
        """Wait until nothing is being worked on, or so long for each thread."""
        for thread in list(self._running):
            thread.join(seconds)
