"""A cache in a folder that others write into: no link is followed, and what lies there is checked once in a run."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path

import fault_server as faults
import pytest
from cached_shards import SHORT, content, ends, in_process, read, tars

from datamodules.shards import local_files as checked_files
from datamodules.shards.local_files import CheckedFiles, open_own
from datamodules.shards.manifest import Shard, load_index, write_manifest
from datamodules.shards.shard_cache import CacheFullError, ShardCache
from datamodules.shards.shard_set import ShardSet

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def new_start(cache: ShardCache) -> ShardCache:
    return ShardCache(cache.folder, max_bytes=cache.max_bytes, policy=SHORT)


PLANTS: dict[str, Callable[[Path, Path], object]] = {
    "a link": lambda path, target: path.symlink_to(target),
    "a link to nothing": lambda path, target: path.symlink_to(target.with_name("new")),
    "a second name": lambda path, target: path.hardlink_to(target),
    "a pipe": lambda path, target: os.mkfifo(path),
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_what_is_planted_is_replaced_and_its_target_stays(
    tmp_path: Path, server: faults.FaultServer, shards: list[Shard], cache: ShardCache, plant: Callable[..., object]
) -> None:
    target = tmp_path / "mine"
    target.write_bytes(b"mine")
    cache.folder.mkdir()
    shard_path = cache.path(shards[0])
    names = [f"{shard_path.name}.40960.part", "evict.lock", "progress.lock", f"{shard_path.stem}.index.json.tmp"]
    for path in (*(cache.folder / name for name in names), shard_path, shard_path.with_suffix(".index.json")):
        plant(path, target)
    assert read(cache, shards[0]) == content(server, shards[0])
    assert cache.index(shards[0]) == load_index(write_manifest(server.folder)[0])
    assert target.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "mine", "www"]
    assert all(path.is_file() and not path.is_symlink() for path in cache.folder.iterdir())


def test_a_folder_in_a_files_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        with pytest.raises(
            ValueError, match=r"data\.loading\.cache_dir: .*/x: expected a file of the shard cache, got"
        ):
            open_own(tmp_path / "x", flags)


def test_eviction_removes_a_planted_link_alone(tmp_path: Path, shards: list[Shard], cache: ShardCache) -> None:
    (tmp_path / "mine").write_bytes(bytes(90_000))
    cache.folder.mkdir()
    (cache.folder / f"{'0' * 40}-x.tar").symlink_to(tmp_path / "mine")
    for shard in shards:
        read(cache, shard)
    assert tars(cache)[-2:] == ["2.tar", "3.tar"]
    assert (tmp_path / "mine").stat().st_size == 90_000


def test_other_bytes_of_equal_size_are_had_anew(
    server: faults.FaultServer, shards: list[Shard], cache: ShardCache, caplog: pytest.LogCaptureFixture
) -> None:
    read(cache, shards[0])
    path = cache.path(shards[0])
    times = path.stat()
    path.write_bytes(b"x" * 40_960)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with caplog.at_level(logging.WARNING):
        assert read(new_start(cache), shards[0]) == content(server, shards[0])
    assert f"{path}: is not what its sha256 says; it is removed and downloaded again" in caplog.text
    path.write_bytes(b"x" * 40_960)
    ahead = new_start(cache)
    ahead.prefetch([shards[0]])
    ahead.join(10)
    assert path.read_bytes() == content(server, shards[0])
    path.with_suffix(".index.json").write_text('{"version": 1, "bytes": 40960, "keys": [], "fields": []}')
    assert ahead.index(shards[0]).keys == ["0"]
    assert server.ranges("/0.tar") == [None] * 3


def test_a_shard_is_hashed_once_in_a_run(
    shards: list[Shard], cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whichever of its processes; what a run has downloaded, not at all."""
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(checked_files.hashlib, "file_digest", lambda *each: hashed.append(each) or digest(*each))
    read(cache, shards[0])
    read(cache, shards[0])
    after_download = len(hashed)  # the download's own
    again = new_start(cache)
    assert ends(in_process(lambda: read(again, shards[0]))) == 0
    read(again, shards[0])
    read(again, shards[0])
    assert (after_download, len(hashed)) == (1, 1)  # the child's was in the child
    for other in (new_start(cache), pickle.loads(pickle.dumps(again))):
        read(other, shards[0])
    assert len(hashed) == 3


def test_checked_files(tmp_path: Path) -> None:
    path, checked = tmp_path / "x", CheckedFiles()
    path.write_bytes(b"1")
    right, other = (hashlib.sha256(data).hexdigest() for data in (b"1", b"2"))
    with path.open() as first:
        assert not checked.is_right(first.fileno(), other)
        assert checked.is_right(first.fileno(), right)
        path.write_bytes(b"2")
        assert checked.is_right(first.fileno(), right)  # once in a run
        assert checked.is_right(first.fileno(), other)
        path.rename(tmp_path / "y")
        path.write_bytes(b"3")
        with path.open() as second:
            assert not checked.is_right(second.fileno(), right)


def test_a_cached_shard_is_on_the_disk_before_it_has_its_name(
    shards: list[Shard], cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: steps.append(os.fstat(file).st_size) or fsync(file))
    monkeypatch.setattr(Path, "replace", lambda path, to: steps.append("replace") or replace(path, to))
    read(cache, shards[0])
    assert steps == [40_960, "replace"]


@pytest.mark.parametrize("window", [1, 2])
def test_a_full_cache_advises_what_helps(shards: list[Shard], cache: ShardCache, window: int) -> None:
    """Another process that rests keeps the shards of two windows in use: with a window of two that is all."""
    roomy = ShardCache(cache.folder, max_bytes=3 * 40_960, policy=SHORT)
    told, tell = os.pipe()

    def hold() -> None:
        other = ShardSet(shards, roomy)
        for ahead, number in {1: [([0, 1], 0), ([1, 2], 1), ([1, 2], 2)], 2: [([0, 1, 2], n) for n in range(3)]}[
            window
        ]:
            other.prefetch(ahead)
            other.read(number)
        os.write(tell, b".")
        signal.pause()

    child = in_process(hold)
    try:
        os.read(told, 1)
        if window == 1:
            assert ShardSet(shards, roomy).read(3).key == "3"
            return
        with pytest.raises(CacheFullError) as caught:
            ShardSet(shards, roomy).read(3)
        assert "is in use; raise it by 40960 bytes or more, or let less be in use" in str(caught.value)
        larger = ShardCache(cache.folder, max_bytes=4 * 40_960, policy=SHORT)
        assert ShardSet(shards, larger).read(3).key == "3"
    finally:
        os.kill(child, signal.SIGKILL)
        ends(child)
        os.close(told)
        os.close(tell)
