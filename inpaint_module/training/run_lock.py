"""One process at a time trains in a run folder: a lock that the kernel frees when the process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_info

from inpaint_module.files import redacted_command
from inpaint_module.parsing import parse_json

LOCK = "run.lock"
_BEGUN = (LOCK, "events.out.tfevents.*", "hparams.yaml")  # before Lightning has looked at data and checkpoint
_TRIES = 10  # the holder may go between two questions
_FLOCK = "hhlli"  # struct flock of Linux: type, whence, start, length, process
_claimed: dict[Path, list[int]] = {}  # run folder -> the descriptor that holds its lock, once per claim
_made: dict[Path, list[Path]] = {}  # run folder -> what its claim has made of it and of the folders above


class Holder(NamedTuple):
    """The process that trains in a run folder."""

    pid: int  # 0 if unknown, as with some network file systems
    host: str
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid or '?'} on {self.host}, since {self.since}: {self.command:.200}"


def claim(folder: Path) -> None:
    """Take a run folder for this process until `release`; may be called again for the same one.

    A folder that was not there is made, and removed by `release` if nothing but the lock has come into it.

    It is a lock of the kernel on `run.lock`, which other hosts see too where their file system shares locks. It is this
    process's alone: workers that outlive it do not keep it. A process that the holder has started passes.

    Raises:
        ValueError: naming the process that has the folder.
    """
    folder = folder.resolve()
    if folder in _claimed:
        _claimed[folder].append(_claimed[folder][0])
        return
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    file, other = _open_and_lock(folder)
    if other is None:
        _made[folder] = missing
        _write(file)
        _claimed[folder] = [file]
        return
    os.close(file)
    if other.pid != os.getppid():
        raise ValueError(
            f"{folder}: expected a run folder that no other process trains in, got one that is in use by {other}. "
            "Wait for its end or end it, or give this run a folder of its own: another name or version of its logger, "
            "or another trainer.default_root_dir"
        )


def release(folder: Path, *, refused: bool = False) -> None:
    """Give up a claim; the last of them frees the folder. Without a claim, nothing happens.

    Args:
        folder: of the run.
        refused: that the run was refused before its first step: what loggers have begun in a new folder goes too.
    """
    folder = folder.resolve()
    files = _claimed.get(folder, [])
    if len(files) == 1:
        os.ftruncate(files[0], 0)
        _remove_empty(folder, _made.pop(folder, []), _BEGUN if refused else (LOCK,))
        os.close(files[0])
        del _claimed[folder]
    elif files:
        files.pop()


def holder(folder: Path) -> Holder | None:
    """The other process that trains in a run folder; None if there is none, or it has started this one."""
    folder = folder.resolve()
    if folder in _claimed:  # and closing another descriptor of the file would free it
        return None
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = _look(file)
    finally:
        os.close(file)
    return None if found is None or found.pid == os.getppid() else found


def _remove_empty(folder: Path, made: list[Path], begun: Sequence[str]) -> None:
    """Remove the folders that a claim has made, unless there is more in them than what `begun` names."""
    names = os.listdir(folder) if made else []
    if names and all(any(fnmatch(name, pattern) for pattern in begun) for name in names):
        for name in names:
            (folder / name).unlink()
        with suppress(OSError):  # something else is in one of them, or has just come
            for each in made:
                each.rmdir()


def _open_and_lock(folder: Path) -> tuple[int, Holder | None]:
    """The descriptor of the lock's file, and who else has it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # another process has just removed the folder that it had made
            continue
        other = _lock(file)
        if other is not None or os.fstat(file).st_nlink:
            return file, other
        os.close(file)  # of a file that another process has just removed


def _lock(file: int) -> Holder | None:
    """Lock an open file, or tell who has."""
    for _ in range(_TRIES):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                rank_zero_info(f"no lock on the run folder, so start no second run in it: {error}")
                return None
        if other := _look(file):
            return other
    return Holder(0, "?", "?", "?")


def _look(file: int) -> Holder | None:
    """Ask the kernel who has the lock, and the file who that is."""
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        kind, *_, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, question))
    except OSError:  # a file system without locks
        return None
    if kind == fcntl.F_UNLCK:
        return None
    here = socket.gethostname()
    try:
        record = parse_json(os.pread(file, 65536, 0), LOCK)
        found = Holder(record["pid"].whole(), *(record[name].text() for name in Holder._fields[1:]))
    except ValueError:  # it is just writing it
        return Holder(max(pid, 0), here, "?", "?")
    return Holder(pid, here, "?", "?") if found.host == here and found.pid != pid > 0 else found


def _write(file: int) -> None:
    """For people, and for the message of a refusal."""
    since, command = datetime.now(UTC).isoformat("T", "seconds"), " ".join(redacted_command(sys.argv))
    record = Holder(os.getpid(), socket.gethostname(), since, command)
    os.ftruncate(file, 0)
    os.pwrite(file, (json.dumps(record._asdict()) + "\n").encode(), 0)
