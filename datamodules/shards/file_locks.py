"""File locks: a file of the shard cache is in use, by any process of the machine, while its own flock is held.

Shared while it is read, exclusive while it is written or removed; the kernel frees both when a process is killed. The
lock is on the file itself, so that no lock files are left behind. An open file that a forked child has inherited keeps
its lock: whoever releases one says so to the kernel (LOCK_UN) and does not trust the closing alone.

The folder may be shared with others: links are not followed, and what has the name of a file of the cache and is none
is removed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import time
from pathlib import Path

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
            f"data.cache_dir: {path}: expected a file of the shard cache, got a link, a folder or another kind of file "
            f"that cannot be removed: {error.strerror}; remove it, or name another folder"
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
