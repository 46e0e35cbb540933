"""RemoteStream over a real server on loopback that breaks off, changes its file, or forgets its ranges."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from datamodules.shards.downloads import RemoteStream, RetryPolicy
from datamodules.shards.transports import RemoteError

DATA = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Serves DATA with the fault that it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = "none"
        self.ranges: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        asked, fault, data = self.headers.get("Range"), self.server.fault, DATA
        self.server.ranges.append(asked)
        ranges = asked and fault not in ("no ranges", "forgets")
        first = int(asked.removeprefix("bytes=").rstrip("-")) if ranges else 0
        again = len(self.server.ranges) > 1
        if fault == "gone":
            self.send_error(404)
            return
        if fault == "busy" and not again:
            self.send_error(503)
            return
        if fault == "changes" and again:
            data = data + b"more"
        first += 7 * (fault == "others" and again)
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        if fault != "no length":
            self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        breaks = not again and fault in ("breaks", "no ranges", "changes", "others", "forgets")
        end = 3000 if breaks else 1000 if fault == "forgets" else len(data)
        self.wfile.write(b"" if fault == "always" else data[first:end])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def stream(server: Server, attempts: int = 8) -> RemoteStream:
    policy = RetryPolicy(attempts=attempts, backoff=0.01)
    return RemoteStream(f"http://127.0.0.1:{server.server_port}/0.tar?token=secret", policy)


def read_all(source: RemoteStream) -> bytes:
    parts = []
    while part := source.read(1000):
        parts.append(part)
    source.close()
    return b"".join(parts)


@pytest.mark.parametrize(
    ("fault", "ranges"),
    [
        ("none", [None]),
        ("no length", [None]),
        ("busy", [None, None]),
        ("breaks", [None, "bytes=3000-"]),
        ("no ranges", [None, "bytes=3000-"]),
    ],
)
def test_every_byte_comes_once(server: Server, fault: str, ranges: list[str | None]) -> None:
    server.fault = fault
    assert read_all(stream(server)) == DATA
    assert server.ranges == ranges


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("gone", r"^http://127\.0\.0\.1:\d+/0\.tar: HTTP 404"),
        (
            "always",
            r"given up after 3 failures: http://127\.0\.0\.1:\d+/0\.tar: the answer ends after 0 of 10240",
        ),
        ("others", r"given up after 3 failures: http.*/0\.tar: asked for the bytes from 3000 on, got others"),
        ("forgets", r"given up after 3 failures: http.*/0\.tar: the answer ends before byte 3000"),
        ("changes", r"/0\.tar: has changed while it was read: 10240 bytes, now 10244"),
    ],
)
def test_what_is_given_up_is_named_without_its_token(server: Server, fault: str, message: str) -> None:
    server.fault = fault
    with pytest.raises(RemoteError, match=message) as error:
        read_all(stream(server, attempts=3))
    assert "secret" not in str(error.value)


def test_size(server: Server) -> None:
    source = stream(server)
    assert source.size == len(DATA)
    assert read_all(source) == DATA
    assert server.ranges == [None]
    server.fault = "no length"
    source = stream(server)
    assert source.size is None
    source.close()
