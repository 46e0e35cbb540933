"""Shards on a server on loopback, and a cache with room for two of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fault_server as faults
import pytest
from cached_shards import SHORT
from data_fixtures import write_tar

from datamodules.shards.manifest import Shard, write_manifest
from datamodules.shards.shard_cache import ShardCache


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
    return ShardCache(tmp_path / "cache", max_bytes=2 * 40_960, policy=SHORT)
