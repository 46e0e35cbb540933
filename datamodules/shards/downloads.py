"""Downloads and their retries: a file fetched whole, however often the line breaks, exactly as its manifest says.

A broken transfer goes on where it stopped. An HTTP body without a length that is cut short, a server that answers
another range than asked, a flipped bit: none of them can become a file.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable
from contextlib import closing
from io import FileIO
from typing import NamedTuple, TypeVar

from datamodules.shards.transports import Body, RemoteError, transport
from inpaint_module.files import redact
from inpaint_module.parsing import MAX_BYTES

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
        """Bytes of the whole file, None if the server does not say."""
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


_CHUNK = 1 << 18
_SLOWEST = 1024  # bytes a second: anything slower has stalled
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


def _check_pace(url: str, began: float, count: int, stall_seconds: float) -> bool:
    """Whether a stretch of reading has ended; raises if it was a trickle, which no time-out of single reads notices."""
    seconds = time.monotonic() - began
    if seconds > stall_seconds and count < _SLOWEST * seconds:
        raise TimeoutError(f"{redact(url)}: stalled, {count} bytes in {seconds:.1f} s")
    return seconds > stall_seconds


def _copy(url: str, body: Body, write: Callable[[bytes], object], room: int, stall_seconds: float) -> None:
    """Hand on at most `room` bytes of a body."""
    began, count = time.monotonic(), 0
    while room and (chunk := body.read(min(_CHUNK, room))):
        write(chunk)
        room -= len(chunk)
        count += len(chunk)
        if _check_pace(url, began, count, stall_seconds):
            began, count = time.monotonic(), 0


def _text(content: bytes, url: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{redact(url)}: expected a text in UTF-8: {error}") from error


def fetch(url: str, parse: Callable[[str], T], policy: RetryPolicy = RetryPolicy()) -> T:  # noqa: B008, immutable
    """A small UTF-8 file, parsed; one that does not parse may have been cut short, and is asked for again.

    Raises:
        RemoteError: if it cannot be had.
        ValueError: of `parse`, if it keeps refusing.
    """
    tries = Tries(policy)
    while True:
        try:
            parts: list[bytes] = []
            with closing(transport(url, stall_seconds=policy.stall_seconds).open(url)) as body:
                _copy(url, body, parts.append, MAX_BYTES + 1, policy.stall_seconds)
            content = b"".join(parts)
            if len(content) > MAX_BYTES:
                raise RemoteError(f"{redact(url)}: expected at most {MAX_BYTES} bytes, got more")
            if body.total is not None and len(content) < body.total:
                raise OSError(f"{redact(url)}: expected {body.total} bytes, got {len(content)}")
            try:
                return parse(_text(content, url))
            except ValueError as error:
                if tries.wrong + 1 == tries.most_wrong:
                    raise
                raise WrongContentError(str(error)) from error
        except RemoteError:
            raise
        except OSError as error:
            tries.failed(error)


def _append(url: str, file: FileIO, size: int, policy: RetryPolicy, report: Callable[[int], object]) -> None:
    """Add to `file` what it lacks of its `size` bytes; if the line breaks, it keeps what came."""
    held = file.seek(0, os.SEEK_END)

    def write(chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            view = view[file.write(view) :]
        report(file.tell())

    with closing(transport(url, stall_seconds=policy.stall_seconds).open(url, held)) as body:
        if body.total not in (None, size):
            file.truncate(0)
            raise WrongContentError(f"{redact(url)}: expected {size} bytes by the manifest, got {body.total}")
        if body.start != held:
            file.truncate(0)
            if body.start != 0:
                raise OSError(f"{redact(url)}: asked for the bytes from {held} on, got others")
            held = 0
        _copy(url, body, write, size - held, policy.stall_seconds)
        if (found := file.seek(0, os.SEEK_END)) < size:
            raise OSError(f"{redact(url)}: the answer ends after {found} of {size} bytes")
        if body.total is None and body.read(1):
            file.truncate(0)
            raise WrongContentError(f"{redact(url)}: expected {size} bytes by the manifest, got more")


def _check_digest(url: str, file: FileIO, sha256: str) -> None:
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        file.truncate(0)
        raise WrongContentError(f"{redact(url)}: expected sha256 {sha256} by the manifest, got {found}")


def download(
    url: str,
    file: FileIO,
    *,
    size: int,
    sha256: str,
    policy: RetryPolicy = RetryPolicy(),  # noqa: B008, immutable
    report: Callable[[int], object] = lambda held: None,
) -> None:
    """Fill a file, opened for appending without a buffer, with the `size` bytes of a URL.

    Args:
        url: where they come from.
        file: may hold the beginning already, of this or another process.
        size: of the whole file, in bytes.
        sha256: of the whole file, 64 hexadecimal digits.
        policy: when to give up.
        report: called with the number of bytes held.

    Raises:
        RemoteError: naming the URL, if it is gone, keeps failing, or keeps being another file.
        OSError: if the disk is full.
    """
    tries, most = Tries(policy), file.seek(0, os.SEEK_END)
    if most > size:
        file.truncate(0)
    while True:
        try:
            if file.seek(0, os.SEEK_END) < size:
                _append(url, file, size, policy, report)
            _check_digest(url, file, sha256)
            return
        except RemoteError:
            raise
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            if file.seek(0, os.SEEK_END) > most:
                most = file.tell()
                tries.forget()
            tries.failed(error)
