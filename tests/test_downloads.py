"""Downloads: what becomes of every fault of a server, to the byte, the request and the word."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import fault_server as faults
import pytest

from datamodules.shards import downloads
from datamodules.shards.downloads import RetryPolicy, download, fetch
from datamodules.shards.transports import MissingError, RemoteError

DATA = random.Random(5).randbytes(600_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
SHORT = RetryPolicy(stall_seconds=0.3, attempts=3, backoff=0.001)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[faults.FaultServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "x").write_bytes(DATA)
    with faults.fault_server(tmp_path / "www") as running:
        yield running


def get(server: faults.FaultServer, path: Path, policy: RetryPolicy = SHORT) -> bytes:
    with FileIO(path, "a+") as file:
        download(f"{server.url}/x", file, size=len(DATA), sha256=SHA256, policy=policy)
    return path.read_bytes()


N = len(DATA)
SURVIVED = {
    "none": ([], [None]),
    "dropped": ([faults.drop(1000)] * 5, [None, *(f"bytes={1000 * n}-" for n in range(1, 6))]),
    "hung up before a word": ([faults.reset] * 2, [None, None, None]),
    "stalled": ([faults.stall(5000)], [None, "bytes=5000-"]),
    "no length": ([faults.no_length()], [None]),
    "no length and cut short": ([faults.no_length(1234)], [None, "bytes=1234-"]),
    "flipped bit": ([faults.flip(77)], [None, None]),
    "500, 503": ([faults.status(500), faults.status(503)], [None, None, None]),
    "429 in the middle": ([faults.drop(9), faults.status(429)], [None, "bytes=9-", "bytes=9-"]),
    "no ranges": ([faults.drop(1000), faults.no_ranges], [None, "bytes=1000-"]),
    "no ranges, dropped again": ([faults.drop(1000), faults.no_length(500)], [None, "bytes=1000-", "bytes=500-"]),
    "another range": ([faults.drop(1000), faults.wrong_range], [None, "bytes=1000-", None]),
    "a range without a label": ([faults.drop(1000), faults.unlabelled_range], [None, "bytes=1000-", None]),
    "a range with a wrong label": ([faults.drop(1000), faults.lying_range], [None, "bytes=1000-", None]),
    "chunked": ([faults.chunked(cut=False)], [None]),
    "chunked and cut": ([faults.chunked(cut=True)], [None, f"bytes={N // 2}-"]),
    "longer once, told": ([faults.longer(3, told=True)], [None, None]),
    "longer once, untold": ([faults.longer(3, told=False)], [None, None]),
    "shorter once": ([faults.shorter(3)], [None, None]),
    "416 in the middle": ([faults.drop(1000), faults.status(416)], [None, "bytes=1000-", None]),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_faults_that_pass(server: faults.FaultServer, tmp_path: Path, name: str) -> None:
    server.faults["/x"], ranges = list(SURVIVED[name][0]), SURVIVED[name][1]
    assert get(server, tmp_path / "x") == DATA
    assert server.ranges("/x") == ranges


@pytest.mark.parametrize(
    ("fault", "text", "requests", "left"),
    [
        (faults.status(404), "URL: HTTP 404 Not Found", 1, 0),
        (faults.status(403), "URL: HTTP 403 Forbidden", 1, 0),
        (faults.status(400), "URL: HTTP 400 Bad Request", 1, 0),
        (faults.status(503), "given up after 3 failures: URL: HTTP 503 Service Unavailable", 3, 0),
        (faults.drop(0), f"given up after 3 failures: URL: the answer ends after 0 of {N} bytes", 3, 0),
        (faults.stall(0), "given up after 3 failures: URL: TimeoutError('timed out')", 3, 0),
        (faults.longer(3, told=True), f"URL: expected {N} bytes by the manifest, got {N + 3}, 3 times", 3, 0),
        (faults.longer(3, told=False), f"URL: expected {N} bytes by the manifest, got more, 3 times", 3, 0),
        (faults.shorter(3), f"URL: expected {N} bytes by the manifest, got {N - 3}, 3 times", 3, 0),
        (faults.no_length(0), f"given up after 3 failures: URL: the answer ends after 0 of {N} bytes", 3, 0),
        (faults.redirect("file:///x"), "URL: HTTP 302 Found - Redirection to url 'file:///x' is not allowed", 1, 0),
        (faults.redirect("ftp://127.0.0.1/x"), "URL: HTTP 302 redirection to ftp://127.0.0.1/x is not allowed", 1, 0),
    ],
)  # fmt: skip
def test_faults_that_stay(
    server: faults.FaultServer, tmp_path: Path, fault: faults.Fault, text: str, requests: int, left: int
) -> None:
    server.faults["/x"] = [fault] * 20
    with pytest.raises(RemoteError) as caught:
        get(server, tmp_path / "x")
    assert str(caught.value) == text.replace("URL", f"{server.url}/x")
    assert len(server.asked) == requests
    assert (tmp_path / "x").stat().st_size == left
    assert isinstance(caught.value, MissingError) == ("404" in text or "403" in text)


def test_wrong_bytes_that_stay_are_named(server: faults.FaultServer, tmp_path: Path) -> None:
    server.faults["/x"] = [faults.flip(0)] * 20
    wrong = hashlib.sha256(bytes([DATA[0] ^ 1]) + DATA[1:]).hexdigest()
    with pytest.raises(RemoteError) as caught:
        get(server, tmp_path / "x", SHORT._replace(attempts=9))
    expected = f"{server.url}/x: expected sha256 {SHA256} by the manifest, got {wrong}, 3 times"
    assert (str(caught.value), len(server.asked)) == (expected, 3)
    assert (tmp_path / "x").read_bytes() == b""


def test_new_bytes_make_patience_new(server: faults.FaultServer, tmp_path: Path) -> None:
    server.faults["/x"] = [faults.drop(100), faults.status(500)] * 4
    assert get(server, tmp_path / "x") == DATA
    assert len(server.asked) == 9
    server.faults["/x"] = [faults.no_length(100), *[lambda h, d, s: faults.no_length(100)(h, d, 0)] * 9]
    with pytest.raises(RemoteError, match=r"given up after 3 failures: .* ends after 100 of 600000 bytes$"):
        get(server, tmp_path / "y")  # it starts anew each time and never comes further


def test_a_trickle_is_a_stall_though_no_read_times_out(server: faults.FaultServer, tmp_path: Path) -> None:
    server.faults["/x"] = [faults.trickle(0.02)]
    assert get(server, tmp_path / "x") == DATA
    first, second = server.ranges("/x")
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) < 100


def test_slow_is_not_stalled(server: faults.FaultServer, tmp_path: Path) -> None:
    server.faults["/x"] = [faults.slow(100_000, 0.1)]
    assert get(server, tmp_path / "x") == DATA
    assert server.ranges("/x") == [None]


@pytest.mark.parametrize("held", [DATA[:4321], b"?" * 4321, DATA + b"more", DATA, b"?" * N])
def test_what_lies_there_already(server: faults.FaultServer, tmp_path: Path, held: bytes) -> None:
    (tmp_path / "x").write_bytes(held)
    assert get(server, tmp_path / "x") == DATA
    part = "bytes=4321-"
    expected = {DATA[:4321]: [part], b"?" * 4321: [part, None], DATA + b"more": [None], DATA: [], b"?" * N: [None]}
    assert server.ranges("/x") == expected[held]


def test_pauses_double_and_are_told(
    server: faults.FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(downloads.time, "sleep", pauses.append)
    server.faults["/x"] = [faults.status(500)] * 7
    with caplog.at_level(logging.WARNING):
        assert get(server, tmp_path / "x", RetryPolicy(stall_seconds=1, attempts=8)) == DATA
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert caplog.messages[1] == f"{server.url}/x: HTTP 500 Internal Server Error; trying again in 2 s"


def test_a_full_disk_is_not_tried_again(server: faults.FaultServer, tmp_path: Path) -> None:
    class Full(FileIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    with Full(tmp_path / "x", "a+") as file, pytest.raises(OSError, match="No space left on device"):
        download(f"{server.url}/x", file, size=N, sha256=SHA256, policy=SHORT)
    assert len(server.asked) == 1


def test_report_says_what_is_held(server: faults.FaultServer, tmp_path: Path) -> None:
    server.faults["/x"] = [faults.drop(1000)]
    told: list[int] = []
    with FileIO(tmp_path / "x", "a+") as file:
        download(f"{server.url}/x", file, size=N, sha256=SHA256, policy=SHORT, report=told.append)
    assert told == sorted(told)
    assert 1000 in told
    assert told[-1] == N


def test_fetch_parses_what_is_whole(server: faults.FaultServer) -> None:
    (server.folder / "n").write_text("12345")
    server.faults["/n"] = [faults.drop(3), faults.status(503)]
    assert fetch(f"{server.url}/n", int, SHORT) == 12345
    assert server.ranges("/n") == [None] * 3


def test_fetch_asks_again_for_what_does_not_parse(server: faults.FaultServer) -> None:
    (server.folder / "n").write_text("[12345]")

    def parse(text: str) -> str:
        if text[-1] != "]":
            raise ValueError(f"cut: {text}")
        return text

    server.faults["/n"] = [faults.no_length(3)]
    assert fetch(f"{server.url}/n", parse, SHORT) == "[12345]"
    server.faults["/n"] = [faults.no_length(3)] * 9
    with pytest.raises(ValueError, match=r"^cut: \[12$"):
        fetch(f"{server.url}/n", parse, SHORT)
    assert len(server.asked) == 2 + 3
