"""Transports: which addresses are read, how they are shown, and what fsspec gives for s3 and gs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request

import fault_server as faults
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datamodules.shards.transports import (
    FsspecTransport,
    HttpTransport,
    MissingError,
    RemoteError,
    _Redirects,
    _request,
    file_name,
    is_remote,
    scheme,
    transport,
    with_path,
)

_REGISTRY = sys.modules["fsspec.registry"]._registry


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[faults.FaultServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "x").write_bytes(b"0123456789")
    with faults.fault_server(tmp_path) as running:
        yield running


def test_addresses() -> None:
    assert [scheme(a) for a in ("https://h/x", "S3://b/x", "pipe:cat", "/a/b.tar", "a.tar", "C:/x")] == [
        "https", "s3", "pipe", None, None, None,
    ]  # fmt: skip
    assert [is_remote(a) for a in ("http://h", "gs://b", "file:///x", "pipe:x", "/x", "https:x")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip
    assert [file_name(a) for a in ("https://h/a/my%20x.tar?t=/1", "s3://b/a/0.tar", "a/b.tar", "c.tar")] == [
        "my x.tar", "0.tar", "b.tar", "c.tar",
    ]  # fmt: skip
    assert with_path("https://h/a?t=1", lambda path: path + "/b") == "https://h/a/b?t=1"
    assert with_path("s3://b/a", lambda path: path + "/b") == "s3://b/a/b"


@pytest.mark.parametrize("url", ["pipe:cat x", "file:///etc/hosts", "ftp://h/x", "hf://x", "x.tar", "https:x"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=f"{url}: expected a URL of http://, https://, s3://, gs://"):
        transport(url)


def test_http_reads_from_any_byte_on(server: faults.FaultServer) -> None:
    http = transport(f"{server.url}/x", stall_seconds=5)
    assert isinstance(http, HttpTransport)
    with closing(http.open(f"{server.url}/x")) as body:
        assert (body.start, body.total, body.read(100), body.read(100)) == (0, 10, b"0123456789", b"")
    with closing(http.open(f"{server.url}/x", 4)) as body:
        assert (body.start, body.total, body.read(2)) == (4, 10, b"45")
    with closing(http.open(f"{server.url}/x", 10)) as body:
        assert (body.start, body.total, body.read(2)) == (-1, 10, b"")


def test_http_follows_http_with_the_range(server: faults.FaultServer) -> None:
    server.faults["/there"] = [faults.redirect("/x")]
    with closing(HttpTransport().open(f"{server.url}/there", 4)) as body:
        assert (body.start, body.read(100)) == (4, b"456789")
    assert [asked.range for asked in server.asked] == ["bytes=4-", "bytes=4-"]
    server.faults["/there"] = [faults.redirect("/there")] * 20
    with pytest.raises(RemoteError, match=r"/there: HTTP 302 .*infinite loop"):
        HttpTransport().open(f"{server.url}/there")


def test_http_sends_user_and_password_to_their_host_alone(server: faults.FaultServer) -> None:
    url = server.url.replace("http://", "http://me:pass%20word@")
    with closing(HttpTransport().open(f"{url}/x")) as body:
        assert body.read(100) == b"0123456789"
    request = _request("http://me:pass%20word@h/é.tar?a=1", 0)
    assert (request.full_url, request.host) == ("http://h/%C3%A9.tar?a=1", "h")
    assert request.get_header("Authorization") == "Basic bWU6cGFzcyB3b3Jk"
    there = _Redirects().redirect_request
    assert there(request, None, 302, "", Message(), "http://h/y").has_header("Authorization")
    assert not there(request, None, 302, "", Message(), "http://g/y").has_header("Authorization")


def test_https_is_not_left_for_http() -> None:
    there = _Redirects()
    request = Request("https://h/x")
    assert there.redirect_request(request, None, 302, "", Message(), "https://g/x").full_url == "https://g/x"
    with pytest.raises(HTTPError, match="redirection to http://g/x is not allowed") as caught:
        there.redirect_request(request, None, 302, "", Message(), "http://g/x")
    caught.value.close()


def test_http_errors_show_no_secrets(server: faults.FaultServer) -> None:
    with pytest.raises(MissingError) as caught:
        HttpTransport().open(f"{server.url}/nothing?token=secret")
    assert str(caught.value) == f"{server.url}/nothing: HTTP 404 Not Found"
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match=f"^{url}/x: .*Connection refused") as refused:
        HttpTransport(stall_seconds=5).open(f"{url}/x")
    assert not isinstance(refused.value, RemoteError)


def test_a_malformed_url_is_the_users_error() -> None:
    with pytest.raises(ValueError, match=r"^http://127\.0\.0\.1:1/a b: expected a URL: "):
        HttpTransport().open("http://127.0.0.1:1/a b")


class Bucket(MemoryFileSystem):
    """Stands in for a bucket; remembers how it was made."""

    protocol = "gs"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    options: dict = {}  # noqa: RUF012

    def __init__(self, **options: object) -> None:
        super().__init__()
        Bucket.options = options

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("gs://"))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryFileSystem:
    monkeypatch.setitem(_REGISTRY, "gs", Bucket)
    system = Bucket()
    system.pipe_file("/b/x", b"0123456789")
    return system


def test_gs_goes_through_fsspec(bucket: MemoryFileSystem) -> None:
    gs = transport("gs://b/x", stall_seconds=7)
    assert isinstance(gs, FsspecTransport)
    with closing(gs.open("gs://b/x", 4)) as body:
        assert (body.start, body.total, body.read(3), body.read(100)) == (4, 10, b"456", b"789")
    assert Bucket.options == {"requests_timeout": 7, "timeout": 7}
    with pytest.raises(MissingError, match=r"^gs://b/y: FileNotFoundError"):
        gs.open("gs://b/y")


def test_errors_of_other_kinds_may_pass(bucket: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bucket, "_open", lambda *_, **__: 1 / 0)
    with pytest.raises(OSError, match=r"^gs://b/x: ZeroDivisionError") as caught:
        FsspecTransport().open("gs://b/x")
    assert not isinstance(caught.value, RemoteError)


@pytest.mark.parametrize(("kind", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, kind: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(_REGISTRY, kind, raising=False)
    with pytest.raises(ValueError, match=rf'{kind}://b/x: .* needs the package {package}: pip install "inpaint-module'):
        FsspecTransport().open(f"{kind}://b/x")


def test_time_outs_give_way_to_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.config import conf

    assert FsspecTransport(stall_seconds=9)._options("s3") == {
        "config_kwargs": {"connect_timeout": 9, "read_timeout": 9}
    }
    monkeypatch.setitem(conf, "s3", {"anon": True, "config_kwargs": {}})
    assert FsspecTransport()._options("s3") == {"anon": True, "config_kwargs": {}}
