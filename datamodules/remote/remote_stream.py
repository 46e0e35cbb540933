"""RemoteStream: a URL read once from its start, going on where a broken transfer stopped."""

from __future__ import annotations

import time

from datamodules.remote.transports import Body, RemoteError, shown, transport

_LONGEST_PAUSE = 30.0


class RemoteStream:
    """Reads a URL from its first byte to its last.

    Args:
        url: http, https, s3 or gs.
        attempts: failures without a new byte after which it is given up.
        backoff: seconds before the second attempt, doubled for each more, at most 30.
        stall_seconds: without bytes for so long is a failure.

    Raises:
        RemoteError: naming the URL, if it is gone, changes meanwhile or keeps failing.
    """

    def __init__(self, url: str, *, attempts: int = 8, backoff: float = 1.0, stall_seconds: float = 30.0) -> None:
        self.url = url
        self.attempts = attempts
        self.backoff = backoff
        self._transport = transport(url, stall_seconds=stall_seconds)
        self._position = 0
        self._failures = 0
        self._body: Body | None = None
        self._size: int | None = None

    @property
    def size(self) -> int | None:
        """Bytes of the whole file, None if the server does not tell."""
        while self._body is None:
            self._try_open()
        return self._size

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        while True:
            if self._body is None:
                self._try_open()
                continue
            try:
                data = self._body.read(size)
                if not data and self._size is not None and self._position < self._size:
                    raise OSError(f"{shown(self.url)}: the answer ends after {self._position} of {self._size} bytes")
            except RemoteError:
                raise
            except OSError as error:
                self.close()
                self._pause(error)
                continue
            self._position += len(data)
            if data:
                self._failures = 0
            return data

    def _try_open(self) -> None:
        try:
            self._body = self._transport.open(self.url, self._position)
            self._go_on(self._body)
        except RemoteError:
            self.close()
            raise
        except OSError as error:
            self.close()
            self._pause(error)

    def _go_on(self, body: Body) -> None:
        """Check that an answer is of the same file, and bring it to the position."""
        if self._position and body.total != self._size:
            raise RemoteError(f"{shown(self.url)}: has changed while it was read: {self._size} bytes, now {body.total}")
        if body.start not in (0, self._position):
            raise OSError(f"{shown(self.url)}: asked for the bytes from {self._position} on, got others")
        self._size = body.total
        missing = self._position - body.start
        while missing:
            data = body.read(min(1 << 18, missing))
            if not data:
                raise OSError(f"{shown(self.url)}: the answer ends before byte {self._position}")
            missing -= len(data)

    def _pause(self, error: OSError) -> None:
        self._failures += 1
        if self._failures >= self.attempts:
            raise RemoteError(f"given up after {self._failures} failures: {error}") from error
        time.sleep(min(self.backoff * 2 ** (self._failures - 1), _LONGEST_PAUSE))

    def close(self) -> None:
        """End the transfer."""
        if self._body is not None:
            self._body.close()
        self._body = None
