"""Processes that share a cache: one download, kills survived, never too much, never what is in use."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import fault_server as faults
import pytest
from cached_shards import SHORT, content, ends, in_process, read, readable, tars
from data_fixtures import write_tar
from waiting import wait_until

from datamodules.shards.downloads import RetryPolicy
from datamodules.shards.local_files import open_to_write, release
from datamodules.shards.manifest import Shard
from datamodules.shards.shard_cache import CacheFullError, ShardCache

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_a_killed_download_is_gone_on_with(server: faults.FaultServer, shards: list[Shard], cache: ShardCache) -> None:
    server.faults["/0.tar"] = [faults.stall(12_345)]
    patient = ShardCache(cache.folder, policy=RetryPolicy(stall_seconds=60))
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
    patient = ShardCache(cache.folder, policy=RetryPolicy(stall_seconds=60))
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
    small = ShardCache(tmp_path / "cache", max_bytes=3 * 40_960, policy=SHORT)

    def work(process: int) -> None:
        for step in range(12):
            number = (step * (process + seed + 1) + process) % 4
            assert read(small, shards[number]) == content(server, shards[number])
            total = sum(entry.held for entry in small._entries())
            assert total <= small.max_bytes, total

    children = [in_process(lambda process=process: work(process)) for process in range(3)]
    assert [ends(child) for child in children] == [0] * 3
