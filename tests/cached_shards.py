"""What a shard cache holds, and other processes that use it."""

from __future__ import annotations

import fcntl
import os
import termios
from array import array
from collections.abc import Callable
from pathlib import Path

import fault_server as faults

from datamodules.shards.downloads import RetryPolicy
from datamodules.shards.local_files import release
from datamodules.shards.manifest import Shard
from datamodules.shards.shard_cache import ShardCache

SHORT = RetryPolicy(stall_seconds=0.5, attempts=3, backoff=0.001)


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
