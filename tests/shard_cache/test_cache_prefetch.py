"""Shards that are fetched before they are asked for."""

from __future__ import annotations

import pickle

import fault_server as faults
import pytest
from cached_shards import content, read, tars
from waiting import wait_until

from datamodules.shards.local_files import open_to_write, release
from datamodules.shards.manifest import Shard
from datamodules.shards.shard_cache import ShardCache


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


def test_pickle_carries_no_threads(server: faults.FaultServer, shards: list[Shard], cache: ShardCache) -> None:
    cache.prefetch(shards[:1])
    copy = pickle.loads(pickle.dumps(cache))
    cache.join(20)
    copy.prefetch(shards[1:2])
    copy.join(20)
    assert tars(copy) == ["0.tar", "1.tar"]
