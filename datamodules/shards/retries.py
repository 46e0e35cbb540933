"""Retries: when a transfer that breaks is tried again, and when it is given up; a URL read once, over all breaks."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from datamodules.shards.transports import Body, RemoteError, transport
from inpaint_module.redaction import redact

_LOG = logging.getLogger(__name__)
_LONGEST_PAUSE = 30.0
_WRONG_FILES = 3  # how often a file may come whole and wrong


class RetryPolicy(NamedTuple):
    """When a transfer is given up.

    `attempts` failures without a new byte, between them pauses of `backoff`, 2, 4 ... times `backoff` seconds, at
    most 30; `stall_seconds` without bytes is a failure.
    """

    stall_seconds: float = 30.0
    attempts: int = 8
    backoff: float = 1.0


class WrongContentError(OSError):
    """A file has come whole, and it is another than expected."""


class Tries:
    """Counts failures and waits between them.

    Args:
        policy: how often, and how long.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy = policy
        self.failures = 0
        self.wrong = 0

    @property
    def most_wrong(self) -> int:
        """So many times whole and wrong is the end."""
        return min(_WRONG_FILES, self.policy.attempts)

    def forget(self) -> None:
        """There is a new byte: failures count from here on."""
        self.failures = 0

    def failed(self, error: OSError) -> None:
        """Wait for the next try, or raise RemoteError if there is none."""
        self.failures += 1
        if isinstance(error, WrongContentError):
            self.wrong += 1
            if self.wrong == self.most_wrong:
                raise RemoteError(f"{error}, {self.wrong} times") from error
        elif self.failures >= self.policy.attempts:
            raise RemoteError(f"given up after {self.failures} failures: {error}") from error
        pause = min(self.policy.backoff * 2 ** (self.failures - 1), _LONGEST_PAUSE)
        _LOG.warning("%s; trying again in %.3g s", error, pause)
        time.sleep(pause)


class RemoteStream:
    """Reads a URL from its first byte to its last.

    Args:
        url: http, https, s3 or gs.
        policy: when to give up.

    Raises:
        RemoteError: naming the URL, if it is gone, changes meanwhile or keeps failing.
    """

    def __init__(self, url: str, policy: RetryPolicy = RetryPolicy()) -> None:  # noqa: B008, immutable
        self.url = url
        self._transport = transport(url, stall_seconds=policy.stall_seconds)
        self._tries = Tries(policy)
        self._position = 0
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
                    raise OSError(f"{redact(self.url)}: the answer ends after {self._position} of {self._size} bytes")
            except RemoteError:
                raise
            except OSError as error:
                self.close()
                self._tries.failed(error)
                continue
            self._position += len(data)
            if data:
                self._tries.forget()
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
            self._tries.failed(error)

    def _go_on(self, body: Body) -> None:
        """Check that an answer is of the same file, and bring it to the position."""
        if self._position and body.total != self._size:
            raise RemoteError(
                f"{redact(self.url)}: has changed while it was read: {self._size} bytes, now {body.total}"
            )
        if body.start not in (0, self._position):
            raise OSError(f"{redact(self.url)}: asked for the bytes from {self._position} on, got others")
        self._size = body.total
        missing = self._position - body.start
        while missing:
            data = body.read(min(1 << 18, missing))
            if not data:
                raise OSError(f"{redact(self.url)}: the answer ends before byte {self._position}")
            missing -= len(data)

    def close(self) -> None:
        """End the transfer."""
        if self._body is not None:
            self._body.close()
        self._body = None
