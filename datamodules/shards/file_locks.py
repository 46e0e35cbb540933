"""File locks: a file of the shard cache is in use, by any process of the machine, while its own flock is held.

Shared while it is read, exclusive while it is written or removed; the kernel frees both when a process is killed. The
lock is on the file itself, so that no lock files are left behind. An open file that a forked child has inherited keeps
its lock: whoever releases one says so to the kernel (LOCK_UN) and does not trust the closing alone.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

_POLL_SECONDS = 0.02


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


def open_in_use(path: Path) -> int | None:
    """A descriptor for reading, in use until `release`; None if there is no such file."""
    while True:
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
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
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
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
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not _try_lock(file):
            return False
        if _is_at(file, path):
            path.unlink()
        return True
    finally:
        release(file)
