"""Local files: locks against removal while a process reads, files found right once, a bounded number of open ones.

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
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


class OpenFiles:
    """Numbered descriptors for reading; a forked process closes its parent's and opens its own.

    Args:
        limit: how many are open at a time.
        close: ends the use of a descriptor that this process has opened.
    """

    def __init__(self, limit: int, close: Callable[[int], object] = os.close) -> None:
        self.limit = limit
        self._close = close
        self._process = os.getpid()
        self._files: OrderedDict[int, int] = OrderedDict()

    def get(self, number: int, open_file: Callable[[], int]) -> int:
        """The descriptor of a file, opened if it is not open."""
        if self._process != os.getpid():
            self.close()
            self._process = os.getpid()
        if number not in self._files:
            while len(self._files) >= self.limit:
                self.close_oldest()
            self._files[number] = open_file()
        self._files.move_to_end(number)
        return self._files[number]

    def drop(self, number: int) -> None:
        """Close a file, if it is open."""
        if number in self._files:
            self._files.move_to_end(number, last=False)
            self.close_oldest()

    def close_oldest(self) -> bool:
        """Close the file that was used longest ago; False if none is open."""
        if not self._files:
            return False
        _, file = self._files.popitem(last=False)
        # a lock on an inherited descriptor is the parent's too: do not end it here
        (self._close if self._process == os.getpid() else os.close)(file)
        return True

    def close(self) -> None:
        """Close all."""
        while self.close_oldest():
            pass

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()
