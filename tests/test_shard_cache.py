"""ShardCache: one download a machine, kills survived, never too much, never what is in use."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import pickle
import re
import signal
import sys
import termios
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import fault_server as faults
import pytest
from data_fixtures import write_tar

from datamodules.remote.downloads import Patience
from datamodules.remote.transports import RemoteError
from datamodules.shards import shard_cache
from datamodules.shards.file_locks import open_to_write, release
from datamodules.shards.manifest import Shard, load_index, write_manifest
from datamodules.shards.shard_cache import CacheFullError, ShardCache, default_folder

SHORT = Patience(stall_seconds=0.5, attempts=3, backoff=0.001)
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[faults.FaultServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "www").mkdir()
    for number in range(4):
        write_tar(tmp_path / "www" / f"{number}.tar", [(f"{number}.jpg", bytes([number]) * 30_000)])
    with faults.fault_server(tmp_path / "www") as running:
        yield running


@pytest.fixture
def shards(server: faults.FaultServer) -> list[Shard]:
    """Four remote shards of 40,960 bytes."""
    local = write_manifest(server.folder)
    return [Shard(f"{server.url}/{Path(s.path).name}", s.count, s.bytes, s.digest) for s in local]


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", max_bytes=2 * 40_960, patience=SHORT)


def content(server: faults.FaultServer, shard: Shard) -> bytes:
    return (server.folder / Path(shard.path).name).read_bytes()


def read(cache: ShardCache, shard: Shard) -> bytes:
    file = cache.open(shard)
    try:
        return os.pread(file, 1 << 20, 0)
    finally:
        release(file)


def tars(cache: ShardCache) -> list[str]:
    """The shards that the cache holds, by their names on the server."""
    return sorted(path.name.partition("-")[2] for path in cache.folder.glob("*.tar"))


def in_process(work: Callable[[], object]) -> int:
    """Do it in another process; its id."""
    if child := os.fork():
        return child
    try:
        work()
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(1)
    os._exit(0)


def ends(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def readable(pipe: int) -> int:
    """How many bytes wait in a pipe."""
    count = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "waited for too long"
        time.sleep(0.01)


def test_once_downloaded_it_is_here(server: faults.FaultServer, shards: list[Shard], cache: ShardCache) -> None:
    assert read(cache, shards[0]) == content(server, shards[0])
    server.faults["/0.tar"] = [faults.status(404)] * 9
    assert read(cache, shards[0]) == content(server, shards[0])
    other = Shard("s3://elsewhere/0.tar", shards[0].count, shards[0].bytes, shards[0].digest)
    assert read(cache, other) == content(server, shards[0])
    assert len(server.asked) == 1
    assert sorted(path.name for path in cache.folder.iterdir()) == [
        f"{shards[0].digest[:40]}-0.tar", "evict.lock", "progress.lock",
    ]  # fmt: skip


def test_equal_names_and_new_content_have_files_of_their_own(
    server: faults.FaultServer, shards: list[Shard], cache: ShardCache
) -> None:
    (server.folder / "val").mkdir()
    write_tar(server.folder / "val" / "0.tar", [("v.jpg", b"v" * 30_000)])
    val = write_manifest(server.folder / "val")[0]
    val = Shard(f"{server.url}/val/0.tar", val.count, val.bytes, val.digest)
    assert read(cache, shards[0]) == content(server, shards[0])
    assert read(cache, val) == (server.folder / "val" / "0.tar").read_bytes()
    changed = Shard(shards[0].path, val.count, val.bytes, val.digest)
    assert cache.path(changed) != cache.path(shards[0])


def test_wrong_content_never_gets_the_name(server: faults.FaultServer, shards: list[Shard], cache: ShardCache) -> None:
    server.faults["/0.tar"] = [faults.flip(600)] * 3
    data = bytearray(content(server, shards[0]))
    data[600] ^= 1
    found = hashlib.sha256(data).hexdigest()
    with pytest.raises(RemoteError) as caught:
        cache.open(shards[0])
    expected = f"{shards[0].path}: expected sha256 {shards[0].digest} by the manifest, got {found}, 3 times"
    assert str(caught.value) == expected
    assert tars(cache) == []
    assert read(cache, shards[0]) == content(server, shards[0])


def test_a_file_that_was_cut_is_had_anew(server: faults.FaultServer, shards: list[Shard], cache: ShardCache) -> None:
    read(cache, shards[0])
    os.truncate(cache.path(shards[0]), 100)
    assert read(cache, shards[0]) == content(server, shards[0])
    assert server.ranges("/0.tar") == [None, None]


def test_a_killed_download_is_gone_on_with(server: faults.FaultServer, shards: list[Shard], cache: ShardCache) -> None:
    server.faults["/0.tar"] = [faults.stall(12_345)]
    patient = ShardCache(cache.folder, patience=Patience(stall_seconds=60))
    part = cache.folder / f"{cache.path(shards[0]).name}.40960.part"
    child = in_process(lambda: patient.open(shards[0]))
    wait_until(lambda: part.exists() and part.stat().st_size == 12_345)
    os.kill(child, signal.SIGKILL)
    assert ends(child) == -signal.SIGKILL
    assert ends(in_process(lambda: cache.open(shards[0]))) == 0
    assert server.ranges("/0.tar") == [None, "bytes=12345-"]
    assert cache.path(shards[0]).read_bytes() == content(server, shards[0])
    assert not part.exists()


def test_processes_share_one_download(server: faults.FaultServer, shards: list[Shard], cache: ShardCache) -> None:
    server.faults["/0.tar"] = [faults.slow(10_000, 0.05)]
    told, tell = os.pipe()

    def hold() -> None:
        file = cache.open(shards[0])
        os.write(tell, b"." if os.pread(file, 1 << 20, 0) == content(server, shards[0]) else b"!")
        signal.pause()

    children = [in_process(hold) for _ in range(4)]
    wait_until(lambda: readable(told) == 4)
    assert os.read(told, 9) == b"...."  # all of them at once
    for child in children:
        os.kill(child, signal.SIGKILL)
        ends(child)
    os.close(told)
    os.close(tell)
    assert server.ranges("/0.tar") == [None]
    assert cache.path(shards[0]).read_bytes() == content(server, shards[0])


def test_a_waiter_takes_over_from_a_killed_one(
    server: faults.FaultServer, shards: list[Shard], cache: ShardCache
) -> None:
    server.faults["/0.tar"] = [faults.stall(5_000)]
    patient = ShardCache(cache.folder, patience=Patience(stall_seconds=60))
    first = in_process(lambda: patient.open(shards[0]))
    wait_until(lambda: [p for p in cache.folder.glob("*.part") if p.stat().st_size == 5_000])
    second = in_process(lambda: patient.open(shards[0]))
    time.sleep(0.1)
    os.kill(first, signal.SIGKILL)
    assert (ends(first), ends(second)) == (-signal.SIGKILL, 0)
    assert server.ranges("/0.tar") == [None, "bytes=5000-"]


def test_the_least_recently_used_goes(server: faults.FaultServer, shards: list[Shard], cache: ShardCache) -> None:
    for number in (0, 1, 0, 2):
        read(cache, shards[number])
    assert tars(cache) == ["0.tar", "2.tar"]
    read(cache, shards[3])
    assert tars(cache) == ["2.tar", "3.tar"]
    assert len(server.asked) == 4


def test_nothing_in_use_goes(server: faults.FaultServer, shards: list[Shard], cache: ShardCache) -> None:
    told, tell = os.pipe()

    def hold() -> None:
        cache.open(shards[0])
        os.write(tell, b".")
        signal.pause()

    child = in_process(hold)
    os.read(told, 1)
    read(cache, shards[1])
    read(cache, shards[2])
    assert tars(cache) == ["0.tar", "2.tar"]  # though 0 was used longest ago
    mine = cache.open(shards[2])
    with pytest.raises(CacheFullError, match=r"expected room for http.*/3\.tar of 40960 bytes, .* is in use; raise it"):
        cache.open(shards[3])
    assert tars(cache) == ["0.tar", "2.tar"]
    assert not list(cache.folder.glob("*.part"))
    assert len(server.asked) == 3
    os.kill(child, signal.SIGKILL)
    ends(child)
    read(cache, shards[3])
    assert tars(cache) == ["2.tar", "3.tar"]
    release(mine)
    os.close(told)
    os.close(tell)


def test_what_is_being_downloaded_counts_and_stays(
    server: faults.FaultServer, shards: list[Shard], cache: ShardCache
) -> None:
    read(cache, shards[0])
    part = cache.folder / f"{cache.path(shards[1]).name}.40960.part"
    file = open_to_write(part)
    read(cache, shards[2])
    assert (tars(cache), part.exists()) == (["2.tar"], True)
    release(file)
    read(cache, shards[3])
    assert (tars(cache), part.exists()) == (["2.tar", "3.tar"], False)


def test_what_is_not_its_own_stays(shards: list[Shard], cache: ShardCache) -> None:
    cache.folder.mkdir()
    write_tar(cache.folder / "mine.tar", [("a.jpg", b"1" * 200_000)])
    for shard in shards:
        read(cache, shard)
    assert tars(cache) == ["", "2.tar", "3.tar"]


@pytest.mark.parametrize("seed", range(3))
def test_never_more_than_it_may(server: faults.FaultServer, shards: list[Shard], tmp_path: Path, seed: int) -> None:
    small = ShardCache(tmp_path / "cache", max_bytes=3 * 40_960, patience=SHORT)

    def work(process: int) -> None:
        for step in range(12):
            number = (step * (process + seed + 1) + process) % 4
            assert read(small, shards[number]) == content(server, shards[number])
            total = sum(entry.held for entry in small._entries())
            assert total <= small.max_bytes, total

    children = [in_process(lambda process=process: work(process)) for process in range(3)]
    assert [ends(child) for child in children] == [0] * 3


def test_prefetch_is_here_before_it_is_asked_for(
    server: faults.FaultServer, shards: list[Shard], cache: ShardCache, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults["/0.tar"] = [faults.status(404)]
    server.faults["/1.tar"] = [faults.status(500)]
    cache.prefetch(shards[:3])
    cache.join(20)
    assert tars(cache) == ["1.tar", "2.tar"]
    assert [asked.path for asked in server.asked] == ["/0.tar", "/1.tar", "/1.tar", "/2.tar"]
    read(cache, shards[1])
    assert len(server.asked) == 4
    assert read(cache, shards[0]) == content(server, shards[0])
    assert capsys.readouterr().err == ""


def test_prefetch_does_not_evict_what_it_has_got(
    server: faults.FaultServer, shards: list[Shard], cache: ShardCache
) -> None:
    cache.prefetch(shards)
    cache.join(20)
    assert tars(cache) == ["0.tar", "1.tar"]
    cache.prefetch(shards[2:])
    cache.join(20)
    assert tars(cache) == ["2.tar", "3.tar"]


def test_prefetch_leaves_to_others_what_they_download(
    server: faults.FaultServer, shards: list[Shard], cache: ShardCache
) -> None:
    cache.folder.mkdir()
    file = open_to_write(cache.folder / f"{cache.path(shards[0]).name}.40960.part")
    cache.prefetch(shards[:2])
    cache.join(20)
    release(file)
    assert tars(cache) == ["1.tar"]


def test_who_needs_what_is_prefetched_waits_for_it(
    server: faults.FaultServer, shards: list[Shard], cache: ShardCache
) -> None:
    server.faults["/0.tar"] = [faults.slow(10_000, 0.05)]
    cache.prefetch(shards[:1])
    wait_until(lambda: server.asked)
    assert read(cache, shards[0]) == content(server, shards[0])
    assert len(server.asked) == 1


def test_index_needs_no_shard(server: faults.FaultServer, shards: list[Shard], cache: ShardCache) -> None:
    local = load_index(write_manifest(server.folder)[0])
    server.faults["/0.index.json"] = [faults.no_length(9), faults.status(503)]
    assert cache.index(shards[0]) == cache.index(shards[0]) == local
    assert [asked.path for asked in server.asked] == ["/0.index.json"] * 3
    assert tars(cache) == []


def test_index_must_be_the_shards(server: faults.FaultServer, shards: list[Shard], cache: ShardCache) -> None:
    wrong = Shard(shards[0].path, 2, 40_960, shards[0].digest)
    with pytest.raises(ValueError, match=r"^http.*/0\.index\.json: expected 40960 bytes and 2 samples, got"):
        cache.index(wrong)
    (server.folder / "1.index.json").unlink()
    with pytest.raises(RemoteError, match=r"^http.*/1\.index\.json: HTTP 404 Not Found$"):
        cache.index(shards[1])
    assert list(cache.folder.iterdir()) == []


def test_too_small(tmp_path: Path, shards: list[Shard], cache: ShardCache) -> None:
    with pytest.raises(ValueError, match=r"data\.cache_bytes: expected at least 1, got 0"):
        ShardCache(tmp_path, max_bytes=0)
    small = ShardCache(tmp_path, max_bytes=40_959)
    with pytest.raises(
        ValueError, match=r"data\.cache_bytes: expected room for http.*0\.tar of 40960 bytes, got 40959"
    ):
        small.open(shards[0])


def test_full_disk(shards: list[Shard], cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    read(cache, shards[0])
    usage = shard_cache.shutil.disk_usage(cache.folder)
    monkeypatch.setattr(shard_cache.shutil, "disk_usage", lambda _: usage._replace(free=960))
    read(cache, shards[1])  # 0 makes room
    assert tars(cache) == ["1.tar"]
    file = cache.open(shards[1])
    with pytest.raises(ValueError, match=r"data\.cache_dir: expected room on the disk of .*, got 40000 too few"):
        cache.open(shards[2])
    release(file)


def test_a_disk_that_fills_up_meanwhile(
    shards: list[Shard], cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_cache, "download", full)
    with pytest.raises(ValueError, match=r"data\.cache_dir: no room on the disk of .*No space left on device"):
        cache.open(shards[0])


def test_folder(tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INPAINT_CACHE", str(tmp_path / "by_env"))
    assert ShardCache().folder == default_folder() == tmp_path / "by_env"
    monkeypatch.delenv("INPAINT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "inpaint_module" / "shards"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ValueError, match=r"data\.cache_dir: .* this user has no home for ~/\.cache/inpaint_module"):
        ShardCache().open(shards[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data\.cache_dir: cannot make the folder .*file/x: "):
        ShardCache(tmp_path / "file" / "x").open(shards[0])


def test_pickle_carries_no_threads(server: faults.FaultServer, shards: list[Shard], cache: ShardCache) -> None:
    cache.prefetch(shards[:1])
    copy = pickle.loads(pickle.dumps(cache))
    cache.join(20)
    copy.prefetch(shards[1:2])
    copy.join(20)
    assert tars(copy) == ["0.tar", "1.tar"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_one_progress_line_for_what_takes_long(
    server: faults.FaultServer, shards: list[Shard], cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    read(cache, shards[0])
    assert sys.stderr.getvalue() == ""
    server.faults["/1.tar"] = [faults.slow(6_000, 0.2)]
    read(cache, shards[1])
    assert re.search(r"\r1\.tar: 0\.0 of 0\.0 MB, 0\.0 MB/s\x1b\[K\n$", sys.stderr.getvalue())
    sys.stderr = Terminal()
    with (cache.folder / "progress.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server.faults["/2.tar"] = [faults.slow(6_000, 0.2)]
        read(cache, shards[2])
    assert sys.stderr.getvalue() == ""
