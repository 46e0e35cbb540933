"""Transports: how the bytes of a URL come, from any byte on.

http and https by the standard library; s3 and gs through fsspec, whose packages for them are extras. Nothing else: a
`pipe:` in a config would be a shell, and `file:` hides a path. What comes is checked elsewhere, by size and sha256.
"""

from __future__ import annotations

import re
import ssl
import sys
import time
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Callable
from email.message import Message
from http.client import HTTPException, HTTPMessage, InvalidURL
from string import punctuation
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from inpaint_module.files import redact

SCHEMES = ("http", "https", "s3", "gs")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_ASK_AGAIN = (408, 425, 429)  # and every 5xx
_MISSING = (401, 403, 404, 410)
_BLOCK_BYTES = 8 << 20  # of one request to an object store


class RemoteError(OSError):
    """What asking again will not change, or no longer: the address is gone or refused, or every try has failed."""


class MissingError(RemoteError):
    """There is nothing at an address, or nothing that we may read."""


class Body(NamedTuple):
    """An answer being read: the file's bytes from `start` on, -1 if it does not say; `total` bytes, if it says so."""

    start: int
    total: int | None
    read: Callable[[int], bytes]
    close: Callable[[], None]


def scheme(address: str) -> str | None:
    """`https://host/0.tar` -> `https`; None for a local path."""
    match = _SCHEME.match(address)
    return match[1].lower() if match else None


def is_remote(address: str) -> bool:
    """Whether an address is one that a transport reads."""
    return scheme(address) in SCHEMES and "://" in address


def file_name(address: str) -> str:
    """The last part of a path or a URL."""
    path = unquote(urlsplit(address).path) if scheme(address) in ("http", "https") else address
    return path.rpartition("/")[2]


def with_path(url: str, change: Callable[[str], str]) -> str:
    """A URL with another path; http keeps its query, which may hold the right to read."""
    if scheme(url) not in ("http", "https"):
        return change(url)
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=change(parts.path)))


class Transport(ABC):
    """Opens URLs of some schemes.

    Args:
        stall_seconds: the longest wait for an answer, and for the next bytes of one.
    """

    def __init__(self, *, stall_seconds: float = 30.0) -> None:
        self.stall_seconds = stall_seconds

    @abstractmethod
    def open(self, url: str, offset: int = 0) -> Body:
        """Ask for the bytes from `offset` on; the answer's `start` says what came.

        Raises:
            RemoteError: if asking again makes no difference.
            OSError: if it may.
        """


class _Redirects(HTTPRedirectHandler):
    """Follows http and https only, and never from https to http."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        there = scheme(newurl)
        if there not in ("http", "https") or (req.type == "https" and there == "http"):
            raise HTTPError(req.full_url, code, f"redirection to {redact(newurl)} is not allowed", headers, fp)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and request.host != req.host:
            request.remove_header("Authorization")  # the password is not for another host
        return request


def _request(url: str, offset: int) -> Request:
    """Ask for the bytes from `offset` on; `user:password@` goes into a header, as http.client takes it for the host."""
    headers = {"User-Agent": "inpaint-module", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if at:
        headers["Authorization"] = f"Basic {b64encode(unquote(user).encode()).decode()}"
    bare = urlunsplit(parts._replace(netloc=host))
    return Request(quote(bare, safe=punctuation + " "), headers=headers)  # http.client takes no letter like é


def _failure(url: str, error: HTTPError) -> OSError:
    text = redact(f"{url}: HTTP {error.code} {error.msg}")
    if error.code in _ASK_AGAIN or error.code >= 500:
        return OSError(text)
    return MissingError(text) if error.code in _MISSING else RemoteError(text)


class HttpTransport(Transport):
    """http and https, with Range requests."""

    def open(self, url: str, offset: int = 0) -> Body:
        """As `Transport.open`; a server that knows no ranges starts at 0."""
        opener = OpenerDirector()
        for handler in (ProxyHandler, HTTPHandler, HTTPSHandler, HTTPDefaultErrorHandler, _Redirects):
            opener.add_handler(handler())
        opener.add_handler(HTTPErrorProcessor())
        try:
            answer = opener.open(_request(url, offset), timeout=self.stall_seconds)
        except HTTPError as error:
            with error:
                if error.code == 416:
                    return Body(-1, self._range(error.headers)[1], lambda _: b"", lambda: None)
                raise _failure(url, error) from None
        except URLError as error:
            kind = RemoteError if isinstance(error.reason, ssl.SSLCertVerificationError) else OSError
            raise kind(f"{redact(url)}: {error.reason}") from error
        except InvalidURL:
            expected = "expected a URL: without spaces (write %20) or control characters, and a number as port"
            raise ValueError(f"{redact(url)}: {expected}") from None  # the error's text has the query
        except (OSError, HTTPException) as error:
            raise OSError(f"{redact(url)}: {error!r}") from error
        start, total = self._range(answer.headers) if answer.status == 206 else (0, answer.length)

        def read(size: int) -> bytes:
            try:
                return answer.read1(size)  # read() would wait for all of size
            except (OSError, HTTPException) as error:
                raise OSError(f"{redact(url)}: {error!r}") from error

        return Body(start, total, read, answer.close)

    @staticmethod
    def _range(headers: Message) -> tuple[int, int | None]:
        """First byte and size of the file, by a Content-Range header."""
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range") or "")
        first, total = match.groups() if match else (None, None)
        return int(first or -1), int(total) if total and total != "*" else None


class FsspecTransport(Transport):
    """s3 and gs; who may read is for their own settings to say (environment, files, fsspec's configuration)."""

    packages = {"s3": "s3fs", "gs": "gcsfs"}  # noqa: RUF012, constant

    def _options(self, kind: str) -> dict[str, Any]:
        """Time-outs in each file system's own words; fsspec's configuration wins."""
        from fsspec.config import conf

        seconds = self.stall_seconds
        known: dict[str, dict[str, Any]] = {
            "s3": {"config_kwargs": {"connect_timeout": seconds, "read_timeout": seconds}},
            "gs": {"requests_timeout": seconds, "timeout": seconds},
        }
        return {**known[kind], **conf.get(kind, {})}

    def _filesystem(self, url: str) -> Any:
        import fsspec

        kind = scheme(url) or ""
        try:
            return fsspec.filesystem(kind, **self._options(kind))
        except ImportError as error:
            raise ValueError(
                f"{redact(url)}: {kind}:// needs the package {self.packages[kind]}: "
                'pip install "inpaint-module[remote]"'
            ) from error

    def open(self, url: str, offset: int = 0) -> Body:
        """As `Transport.open`."""
        file = self._guard(url, lambda: self._filesystem(url).open(url, "rb", block_size=_BLOCK_BYTES))
        self._guard(url, lambda: file.seek(offset))
        return Body(offset, file.size, lambda size: self._guard(url, lambda: file.read(size)), file.close)

    @staticmethod
    def _guard(url: str, action: Callable[[], Any]) -> Any:
        """Errors in our words; object stores' packages have kinds of their own that are no OSError."""
        try:
            return action()
        except ValueError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise MissingError(redact(f"{url}: {error!r}")) from error
        except Exception as error:
            kind = RemoteError if type(error).__name__ == "NoCredentialsError" else OSError
            raise kind(redact(f"{url}: {error!r}")) from error


def transport(url: str, *, stall_seconds: float = 30.0) -> Transport:
    """The transport of a URL's scheme.

    Raises:
        ValueError: if none is allowed to read it.
    """
    if not is_remote(url):
        raise ValueError(f"{redact(url)}: expected a URL of {', '.join(f'{name}://' for name in SCHEMES)}")
    kind = HttpTransport if scheme(url) in ("http", "https") else FsspecTransport
    return kind(stall_seconds=stall_seconds)


_FIRST, _TERMINAL, _LOG = 1.0, 0.5, 30.0  # seconds before the first line, and between lines


class ProgressLine:
    """A line on stderr for a transfer that takes long: called with the bytes held so far, `end` finishes it.

    Not tqdm: its lock is shared by forked processes, and a worker killed while it draws would leave the others waiting.

    Args:
        name: of what is transferred.
        total: bytes.
    """

    def __init__(self, name: str, total: int) -> None:
        self.name = name
        self.total = total
        self._began = time.monotonic()
        self._next = self._began + _FIRST
        self._first: int | None = None
        self._terminal = sys.stderr.isatty()
        self._written = False

    def __call__(self, held: int) -> None:
        if self._first is None:
            self._first = held
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_TERMINAL if self._terminal else _LOG)
        rate = max(held - self._first, 0) / (now - self._began)
        text = f"{self.name}: {held / 1e6:.1f} of {self.total / 1e6:.1f} MB, {rate / 1e6:.1f} MB/s"
        sys.stderr.write(f"\r{text}\x1b[K" if self._terminal else f"{text}\n")
        sys.stderr.flush()
        self._written = True

    def end(self) -> None:
        """Leave the cursor on a new line."""
        if self._written and self._terminal:
            sys.stderr.write("\n")
            sys.stderr.flush()
