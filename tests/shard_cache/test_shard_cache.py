"""ShardCache: what is downloaded is here, is right, and has its own name; what it says of folders and disks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import sys
from pathlib import Path

import fault_server as faults
import pytest
from cached_shards import content, read, tars
from data_fixtures import write_tar

from datamodules.shards import shard_cache
from datamodules.shards.local_files import release
from datamodules.shards.manifest import Shard, load_index, write_manifest
from datamodules.shards.shard_cache import ShardCache, default_folder
from datamodules.shards.transports import RemoteError


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


def test_full_disk(shards: list[Shard], cache: ShardCache, monkeypatch: pytest.MonkeyPatch) -> None:
    read(cache, shards[0])
    usage = shard_cache.shutil.disk_usage(cache.folder)
    monkeypatch.setattr(shard_cache.shutil, "disk_usage", lambda _: usage._replace(free=960))
    read(cache, shards[1])  # 0 makes room
    assert tars(cache) == ["1.tar"]
    file = cache.open(shards[1])
    with pytest.raises(
        ValueError, match=r"data\.loading\.cache_dir: expected room on the disk of .*, got 40000 too few"
    ):
        cache.open(shards[2])
    release(file)


def test_a_disk_that_fills_up_meanwhile(
    shards: list[Shard], cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_cache, "download", full)
    with pytest.raises(ValueError, match=r"data\.loading\.cache_dir: no room on the disk of .*No space left on device"):
        cache.open(shards[0])


def test_too_small(tmp_path: Path, shards: list[Shard], cache: ShardCache) -> None:
    with pytest.raises(ValueError, match=r"data\.loading\.cache_bytes: expected at least 1, got 0"):
        ShardCache(tmp_path, max_bytes=0)
    small = ShardCache(tmp_path, max_bytes=40_959)
    with pytest.raises(
        ValueError, match=r"data\.loading\.cache_bytes: expected room for http.*0\.tar of 40960 bytes, got 40959"
    ):
        small.open(shards[0])


def test_folder(tmp_path: Path, shards: list[Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INPAINT_CACHE", str(tmp_path / "by_env"))
    assert ShardCache().folder == default_folder() == tmp_path / "by_env"
    monkeypatch.delenv("INPAINT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "inpaint_module" / "shards"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(
        ValueError, match=r"data\.loading\.cache_dir: .* this user has no home for ~/\.cache/inpaint_module"
    ):
        ShardCache().open(shards[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"data\.loading\.cache_dir: cannot make the folder .*file/x: "):
        ShardCache(tmp_path / "file" / "x").open(shards[0])


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
