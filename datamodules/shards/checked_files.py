"""CheckedFiles: what a run has read and found right, so that none of its processes reads it again for that.

It must stand alone: the table is in shared memory, not on a disk where others could change it.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import weakref
from typing import Any

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
