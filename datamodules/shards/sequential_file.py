"""SequentialFile: a stream that can only be read on, as a file that tarfile understands."""

from __future__ import annotations

import hashlib
from typing import Any

_CHUNK = 1 << 20


class SequentialFile:
    """Reads a stream once from its start, hashing every byte; what a seek leaves out is read too.

    A seek may go back over bytes of the last read, which tarfile does at a member's last byte and at its end mark.

    Args:
        stream: anything with `read(size)`, such as a file or an HTTP response.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._position = 0
        self._last = b""
        self._again = b""  # the end of the last read, if a seek went back into it
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of all bytes read so far."""
        return self._hash.hexdigest()

    def tell(self) -> int:
        """Bytes from the start."""
        return self._position

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        parts = [self._again[:size]]
        self._again = self._again[size:]
        missing = size - len(parts[0])
        while missing and (part := self._stream.read(missing)):
            self._hash.update(part)
            parts.append(part)
            missing -= len(part)
        self._last = b"".join(parts)
        self._position += len(self._last)
        return self._last

    def seek(self, position: int) -> int:
        """Go on to a position; the end of the stream stops it.

        Raises:
            ValueError: if it lies before the last read.
        """
        back = self._position - position
        if back > len(self._last):
            raise ValueError(f"expected to go on from byte {self._position}, got a seek to {position}")
        if back > 0:
            self._last, self._again = self._last[:-back], self._last[-back:] + self._again
            self._position = position
        while self._position < position and self.read(min(_CHUNK, position - self._position)):
            pass
        return self._position
