"""File locks: what is in use stays, also where forks and kills would have it otherwise."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest

from datamodules.shards.local_files import open_in_use, open_to_write, release, remove_unused

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_a_file_in_use_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert open_in_use(path) is None
    path.write_bytes(b"12")
    first, second = open_in_use(path), open_in_use(path)
    assert not remove_unused(path)
    release(first)
    assert not remove_unused(path)
    release(second)
    assert remove_unused(path)
    assert not path.exists()
    assert remove_unused(path)


def test_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    file = open_to_write(path)
    assert open_to_write(path, wait=False) is None
    assert not remove_unused(path)
    os.write(file, b"1")
    release(file)
    file = open_to_write(path, wait=False)
    os.write(file, b"2")
    assert path.read_bytes() == b"12"
    release(file)


def test_who_waits_for_a_renamed_file_begins_another(tmp_path: Path) -> None:
    part, path = tmp_path / "x.part", tmp_path / "x"
    file = open_to_write(part)
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        os.write(told, b".")
        mine = open_to_write(part)
        os._exit(7 if os.fstat(mine).st_size == 0 and path.exists() else 1)
    os.read(ready, 1)
    os.write(file, b"1")
    part.replace(path)
    release(file)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    os.close(ready)
    os.close(told)


def test_a_file_that_goes_before_it_is_locked_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = tmp_path / "x", fcntl.flock

    def late(file: int, how: int) -> None:
        monkeypatch.undo()
        path.unlink()
        lock(file, how)

    path.write_bytes(b"old")
    monkeypatch.setattr(fcntl, "flock", late)
    assert open_in_use(path) is None
    path.write_bytes(b"old")
    monkeypatch.setattr(fcntl, "flock", late)
    file = open_to_write(path)
    assert os.fstat(file).st_size == path.stat().st_size == 0
    release(file)


def test_a_child_that_inherits_a_descriptor_does_not_keep_its_lock(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    files = [open_to_write(tmp_path / "part"), open_in_use(tmp_path / "x")]
    child = os.fork()
    if not child:
        signal.pause()
    for file in files:
        release(file)
    assert remove_unused(tmp_path / "part")
    assert remove_unused(tmp_path / "x")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_a_kill_frees(tmp_path: Path) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        open_to_write(tmp_path / "x")
        os.write(told, b".")
        signal.pause()
    os.read(ready, 1)
    assert open_to_write(tmp_path / "x", wait=False) is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    release(open_to_write(tmp_path / "x", wait=False))
    os.close(ready)
    os.close(told)
