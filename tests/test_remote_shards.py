"""Remote shards from a config's list to samples: over HTTP and S3, in workers, equal to local ones."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import fault_server as faults
import pytest
from data_fixtures import write_tar
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from torch.utils.data import DataLoader, Dataset

from datamodules.shards import shard_set as shards_module
from datamodules.shards.downloads import RetryPolicy
from datamodules.shards.manifest import write_manifest
from datamodules.shards.shard_cache import ShardCache
from datamodules.shards.shard_set import RawSample, ShardSet
from datamodules.shards.shard_specs import find_shards, open_shards
from datamodules.shards.transports import FsspecTransport, RemoteError, file_name

SHORT = RetryPolicy(stall_seconds=5, attempts=3, backoff=0.001)
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of 40,960 bytes with four samples each, and their manifest."""
    folder = tmp_path / "www" / "train"
    folder.mkdir(parents=True)
    for shard in range(3):
        members = [(f"{shard}{n}.jpg", bytes([shard * 4 + n]) * 7_000) for n in range(4)]
        write_tar(folder / f"{shard:03d}.tar", [*members, (f"{shard}3.txt", b"the last")])
    write_manifest(folder)
    return folder


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[faults.FaultServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with faults.fault_server(folder.parent) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", policy=SHORT)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(folder: Path, moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same shards in a bucket."""
    for name, value in {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing", "ENDPOINT_URL": moto}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    S3FileSystem.clear_instance_cache()
    system = S3FileSystem()
    if not system.exists("photos"):
        system.mkdir("photos")
    system.put(f"{folder}/", "photos/train/", recursive=True)
    yield "s3://photos/train"
    system.rm("photos/train", recursive=True)
    S3FileSystem.clear_instance_cache()


def contents(samples: list[RawSample]) -> list[tuple[str, str, dict[str, bytes]]]:
    return [(file_name(raw.shard), raw.key, raw.fields) for raw in samples]


def read_all(shards: ShardSet) -> list[tuple[str, str, dict[str, bytes]]]:
    return contents([shards.read(number) for number in range(len(shards))])


class Samples(Dataset[RawSample]):
    """The samples of a set, backwards."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> RawSample:
        return self.shards.read(len(self.shards) - 1 - number)


def read_in_workers(shards: ShardSet) -> list[tuple[str, str, dict[str, bytes]]]:
    loader = DataLoader(Samples(shards), batch_size=2, num_workers=2, collate_fn=list, multiprocessing_context="fork")
    return contents([raw for batch in loader for raw in batch])


def names(spec: str | list[str], cache: ShardCache) -> list[str]:
    return [file_name(shard.path).removesuffix(".tar") for shard in find_shards(spec, cache)]


def test_http_specs(server: faults.FaultServer, cache: ShardCache) -> None:
    url = f"{server.url}/train"
    assert names(url, cache) == names(f"{url}/", cache) == ["000", "001", "002"]
    assert names(f"{url}/{{002..000}}.tar", cache) == ["002", "001", "000"]
    assert names([f"{url}/002.tar", f"{url}/*.tar"], cache) == ["002", "000", "001", "002"]
    assert server.ranges("/train/manifest.json") == [None] * 4
    assert find_shards(f"{url}?key=1", cache)[0].path == f"{url}/000.tar?key=1"
    assert server.asked[-1].path == "/train/manifest.json?key=1"


def test_http_samples_equal_local_ones(server: faults.FaultServer, folder: Path, cache: ShardCache) -> None:
    here, there = open_shards(str(folder)), open_shards(f"{server.url}/train", cache)
    assert here.fingerprint == there.fingerprint == open_shards(f"{server.url}/train?key=1", cache).fingerprint
    assert (here.counts, here.starts) == (there.counts, there.starts)
    assert read_all(there) == read_all(here)
    assert there.read(0).shard == f"{server.url}/train/000.tar"
    assert open_shards(f"{server.url}/train?key=secret", cache).read(0).shard == f"{server.url}/train/000.tar"
    again = pickle.loads(pickle.dumps(there))
    assert read_all(again) == read_all(here)
    for kind in ("tar", "index.json"):
        assert [server.ranges(f"/train/{n:03d}.{kind}") for n in range(3)] == [[None]] * 3


def test_http_in_workers(server: faults.FaultServer, folder: Path, cache: ShardCache) -> None:
    there = open_shards(f"{server.url}/train", cache)
    there.read(0)  # so that the workers inherit an open shard
    server.faults["/train/001.tar"] = [faults.drop(9_999), faults.status(503)]
    assert read_in_workers(there) == read_all(open_shards(str(folder)))[::-1]
    assert [server.ranges(f"/train/{n:03d}.tar") for n in (0, 2)] == [[None]] * 2
    assert server.ranges("/train/001.tar") == [None, "bytes=9999-", "bytes=9999-"]


def test_s3_in_workers(bucket: str, folder: Path, cache: ShardCache) -> None:
    here, there = open_shards(str(folder)), open_shards(bucket, cache)
    assert names(f"{bucket}/{{001..002}}.tar", cache) == ["001", "002"]
    assert there.fingerprint == here.fingerprint
    assert read_in_workers(there) == read_all(here)[::-1]
    assert read_all(there) == read_all(here)


def test_s3_goes_on_where_it_stopped(
    bucket: str, folder: Path, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = find_shards(bucket, cache)[0]
    cache.folder.mkdir()
    (cache.folder / f"{cache.path(shard).name}.{shard.bytes}.part").write_bytes((folder / "000.tar").read_bytes()[:999])
    offsets: list[int] = []
    plain = FsspecTransport.open
    monkeypatch.setattr(FsspecTransport, "open", lambda s, url, at=0: offsets.append(at) or plain(s, url, at))
    os.close(cache.open(shard))
    assert offsets == [999]
    assert cache.path(shard).read_bytes() == (folder / "000.tar").read_bytes()


def test_s3_missing_and_changed(bucket: str, folder: Path, cache: ShardCache) -> None:
    with pytest.raises(ValueError, match=r"no shard '009\.tar' in the manifest\.json of s3://photos/train; make one"):
        find_shards(f"{bucket}/009.tar", cache)
    with pytest.raises(ValueError, match=r"s3://photos/other/manifest\.json: FileNotFoundError"):
        find_shards("s3://photos/other", cache)
    there = open_shards(bucket, cache)
    S3FileSystem().pipe_file("photos/train/000.tar", bytes(40_960))
    with pytest.raises(RemoteError, match=r"s3://photos/train/000\.tar: expected sha256 .* got .*, 3 times"):
        there.read(0)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"version": 1, "shards": "\xff"}', b'{"version": 1, "shards": 3}'])
def test_a_manifest_that_is_none_is_named(
    server: faults.FaultServer, folder: Path, cache: ShardCache, data: bytes
) -> None:
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"^shards '{server.url}/train': {server.url}/train/manifest\.json: .*expected"
    ):
        find_shards(f"{server.url}/train", cache)


def test_shards_without_a_manifest_are_refused(server: faults.FaultServer, folder: Path, cache: ShardCache) -> None:
    (folder / "manifest.json").unlink()
    spec = f"{server.url}/train/{{000..002}}.tar"
    with pytest.raises(ValueError, match=r"HTTP 404 Not Found") as caught:
        find_shards(spec, cache)
    assert str(caught.value) == (
        f"shards {spec!r}: expected a manifest.json beside remote shards: "
        f"{server.url}/train/manifest.json: HTTP 404 Not Found; "
        f"make one with: inpaint shards index '{spec}' FOLDER"
    )
    server.faults["/train/manifest.json"] = [faults.status(503)] * 3
    with pytest.raises(RemoteError, match=r"given up after 3 failures: .*manifest\.json: HTTP 503"):
        find_shards(spec, cache)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"path": "/etc/hosts"}, "expected shards at URLs, got '/etc/hosts'"),
        ({"url": "file:///etc/hosts"}, "expected shards at URLs, got 'file:///etc/hosts'"),
        ({"url": "pipe:cat /etc/hosts"}, "expected shards at URLs, got 'pipe:cat /etc/hosts'"),
        ({"name": "../x.tar"}, "expected a file name without a folder"),
        ({"sha256": "../../x"}, "a sha256 of 64 digits"),
        ({"count": "4"}, "not a valid row"),
    ],
)
def test_a_manifest_may_not_lead_elsewhere(
    server: faults.FaultServer, folder: Path, cache: ShardCache, change: dict[str, str], text: str
) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["shards"][0] |= change
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(text)):
        find_shards(f"{server.url}/train", cache)


def test_a_local_manifest_of_remote_shards(server: faults.FaultServer, folder: Path, cache: ShardCache) -> None:
    listed = folder.parent.parent / "listed"
    listed.mkdir()
    content = json.loads((folder / "manifest.json").read_text())
    for row in content["shards"]:
        row["url"] = f"{server.url}/train/{row['name']}"
        index = row["name"].replace(".tar", ".index.json")
        (listed / index).write_bytes((folder / index).read_bytes())
    (listed / "manifest.json").write_text(json.dumps(content))
    there = open_shards(str(listed), cache)
    assert read_all(there) == read_all(open_shards(str(folder)))
    assert [asked.path for asked in server.asked] == [f"/train/{n:03d}.tar" for n in range(3)]
    assert there.fingerprint == open_shards(str(folder)).fingerprint
    content["shards"][0]["url"] = "pipe:cat /etc/hosts"
    (listed / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"shards 'pipe:cat /etc/hosts': expected .* a pipe runs a shell command"):
        find_shards(str(listed), cache)


def test_a_window_is_prefetched_and_held(server: faults.FaultServer, folder: Path, tmp_path: Path) -> None:
    tight = ShardCache(tmp_path / "cache", max_bytes=2 * 40_960 + 8_000, policy=SHORT)
    there = open_shards([str(folder), f"{server.url}/train"], tight)
    there.prefetch([0, 1])
    assert not (tmp_path / "cache").exists()
    there.prefetch([0, 3, 4])
    tight.join(20)
    assert [asked.path for asked in server.asked][1:] == ["/train/000.tar", "/train/001.tar"]
    local = read_all(open_shards(str(folder)))
    assert contents([there.read(n) for n in (12, 16)]) == [local[0], local[4]]
    there.prefetch([5])
    tight.join(20)
    assert "/train/002.tar" not in [asked.path for asked in server.asked]  # 3 and 4 are in use
    assert contents([there.read(20)]) == [local[8]]  # closes what it used longest ago


def test_waits_for_room_that_others_hold(server: faults.FaultServer, tmp_path: Path) -> None:
    tight = ShardCache(tmp_path / "cache", max_bytes=50_000, policy=SHORT._replace(stall_seconds=0.1))
    one, other = (open_shards(f"{server.url}/train", tight) for _ in range(2))
    one.read(0)
    with pytest.raises(OSError, match=r"data\.loading\.cache_bytes is in use; raise it by 31920 bytes or more, or"):
        other.read(4)
    del one
    assert other.read(4).key == "10"


def test_an_unreachable_shard_is_final(server: faults.FaultServer, cache: ShardCache) -> None:
    there = open_shards(f"{server.url}/train", cache)
    server.faults["/train/000.tar"] = [faults.status(404)]
    with pytest.raises(RemoteError, match=r"^http.*/train/000\.tar: HTTP 404 Not Found$"):
        there.read(0)
    assert server.ranges("/train/000.tar") == [None]
    assert there.read(0).key == "00"


def test_the_cache_must_hold_the_largest_shard(server: faults.FaultServer, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data\.loading\.cache_bytes: expected room for .*000\.tar of 40960 bytes, got 999"
    ):
        open_shards(f"{server.url}/train", ShardCache(tmp_path, max_bytes=999, policy=SHORT))


def test_a_hiccup_of_a_local_disk_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = open_shards(str(folder))
    expected = here.read(0)
    pauses: list[float] = []
    failures = [OSError(116, "Stale file handle"), OSError(5, "Input/output error")]
    plain = os.pread

    def pread(*arguments: int) -> bytes:
        if failures:
            raise failures.pop()
        return plain(*arguments)

    monkeypatch.setattr(shards_module.time, "sleep", pauses.append)
    monkeypatch.setattr(os, "pread", pread)
    assert here.read(0) == expected
    assert pauses == [0.1, 1.0]
    failures += [OSError(5, "Input/output error")] * 4
    with pytest.raises(OSError, match=rf"^{folder}/000\.tar: .*Input/output error"):
        here.read(0)
    (folder / "001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"001\.tar"):
        here.read(4)
    assert pauses == [0.1, 1.0, 0.1, 1.0, 4.0]
