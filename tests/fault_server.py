"""A real HTTP server on loopback that serves a folder, with ranges, and injects the faults that it is told to."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple


class Asked(NamedTuple):
    """One request: its path, and its Range header or None."""

    path: str
    range: str | None


class Handler(BaseHTTPRequestHandler):
    """Answers with a file, or with the next fault of its path."""

    server: FaultServer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def head(self, code: int, **headers: object) -> None:
        """Status line and headers; underscores stand for hyphens."""
        self.send_response(code)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def whole(self, data: bytes, start: int) -> None:
        """An answer without faults: what follows is sent as a range, if one was asked for."""
        if start >= len(data) > 0:
            self.head(416, Content_Range=f"bytes */{len(data)}", Content_Length=0)
            return
        self.begin(data, start)
        self.wfile.write(data[start:])

    def begin(self, data: bytes, start: int) -> None:
        """The head of a faultless answer."""
        length = len(data) - start
        if start:
            self.head(206, Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}", Content_Length=length)
        else:
            self.head(200, Content_Length=length)

    def do_GET(self) -> None:
        """Serve one file."""
        asked = self.headers.get("Range")
        self.server.asked.append(Asked(self.path, asked))
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        faults = self.server.faults[self.path.partition("?")[0]]
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        fault = faults.pop(0) if faults else Handler.whole
        if not path.is_file() and fault is Handler.whole:
            self.head(404, Content_Length=0)
        else:
            fault(self, path.read_bytes() if path.is_file() else b"", start)


Fault = Callable[[Handler, bytes, int], None]


class FaultServer(ThreadingHTTPServer):
    """Serves a folder; `faults[path]` are used up one a request, `asked` records every request."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: defaultdict[str, list[Fault]] = defaultdict(list)
        self.asked: list[Asked] = []
        self.ended = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no news."""

    @property
    def url(self) -> str:
        """Of the folder."""
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self, path: str) -> list[str | None]:
        """The Range headers of the requests for one path."""
        return [asked.range for asked in self.asked if asked.path == path]


@contextmanager
def fault_server(folder: Path) -> Iterator[FaultServer]:
    """A running server."""
    with FaultServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


def drop(after: int) -> Fault:
    """Promise the whole, hang up after so many bytes."""

    def fault(handler: Handler, data: bytes, start: int) -> None:
        handler.begin(data, start)
        handler.wfile.write(data[start : start + after])

    return fault


def stall(after: int) -> Fault:
    """Say nothing more after so many bytes."""

    def fault(handler: Handler, data: bytes, start: int) -> None:
        handler.begin(data, start)
        handler.wfile.write(data[start : start + after])
        handler.server.ended.wait(60)

    return fault


def trickle(pause: float) -> Fault:
    """A byte at a time."""

    def fault(handler: Handler, data: bytes, start: int) -> None:
        handler.begin(data, start)
        for place in range(start, len(data)):
            handler.wfile.write(data[place : place + 1])
            if handler.server.ended.wait(pause):
                return

    return fault


def slow(chunk: int, pause: float) -> Fault:
    """So many bytes at a time, with pauses: slow, but not too slow."""

    def fault(handler: Handler, data: bytes, start: int) -> None:
        handler.begin(data, start)
        for place in range(start, len(data), chunk):
            handler.wfile.write(data[place : place + chunk])
            time.sleep(pause)

    return fault


def no_length(cut: int | None = None) -> Fault:
    """No Content-Length, and perhaps not all of the body: HTTP/1.0 cannot tell."""

    def fault(handler: Handler, data: bytes, start: int) -> None:
        handler.head(200)
        handler.wfile.write(data[:cut])

    return fault


def flip(place: int) -> Fault:
    """One bit is another."""

    def fault(handler: Handler, data: bytes, start: int) -> None:
        changed = bytearray(data)
        changed[place] ^= 1
        handler.whole(bytes(changed), start)

    return fault


def status(code: int) -> Fault:
    """No file but a status."""
    return lambda handler, data, start: handler.head(code, Content_Length=0)


def no_ranges(handler: Handler, data: bytes, start: int) -> None:
    """The whole file, whatever was asked for."""
    handler.whole(data, 0)


def wrong_range(handler: Handler, data: bytes, start: int) -> None:
    """Another part of the file than asked for, honestly labelled."""
    handler.whole(data, max(start - 7, 1))


def unlabelled_range(handler: Handler, data: bytes, start: int) -> None:
    """A part of the file, and not said which."""
    handler.head(206, Content_Length=len(data) - start)
    handler.wfile.write(data[start:])


def lying_range(handler: Handler, data: bytes, start: int) -> None:
    """Another part of the file, labelled as the one asked for."""
    handler.begin(data, start)
    handler.wfile.write((data[7:] + data[:7])[start:])


def redirect(url: str, code: int = 302) -> Fault:
    """The file is elsewhere."""
    return lambda handler, data, start: handler.head(code, Location=url, Content_Length=0)


def longer(more: int, *, told: bool) -> Fault:
    """More bytes than the file has, with or without a Content-Length that says so."""

    def fault(handler: Handler, data: bytes, start: int) -> None:
        handler.head(200, **({"Content_Length": len(data) + more} if told else {}))
        handler.wfile.write(data + bytes(more))

    return fault


def shorter(less: int) -> Fault:
    """A file that has fewer bytes, and says so."""
    return lambda handler, data, start: handler.whole(data[:-less], start)


def chunked(cut: bool) -> Fault:
    """Chunked transfer, perhaps without its end."""

    def fault(handler: Handler, data: bytes, start: int) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.head(200, Transfer_Encoding="chunked")
        handler.protocol_version = "HTTP/1.0"
        for place in range(0, len(data) // 2 if cut else len(data), 1000):
            part = data[place : place + 1000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        if not cut:
            handler.wfile.write(b"0\r\n\r\n")

    return fault


def reset(handler: Handler, data: bytes, start: int) -> None:
    """Hang up before a word."""
    handler.close_connection = True
