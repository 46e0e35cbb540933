"""OpenFiles: a bounded number of open files, the least recently used closed first."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable


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
