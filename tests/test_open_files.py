"""OpenFiles: how many are open, which go first, and what a fork has to do with it."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from datamodules.shards.shard_set import OpenFiles


def open_numbered(files: OpenFiles, folder: Path, number: int) -> int:
    (folder / str(number)).touch()
    return files.get(number, partial(os.open, folder / str(number), os.O_RDONLY))


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    closed: list[int] = []

    def close(file: int) -> None:
        closed.append(file)
        os.close(file)

    files = OpenFiles(2, close)
    get = partial(open_numbered, files, tmp_path)
    first, second = get(1), get(2)
    assert get(1) == first
    third = get(3)
    assert closed == [second]
    files.limit = 1
    fourth = get(4)
    assert closed == [second, first, third]
    files.drop(3)
    files.drop(4)
    assert closed[3:] == [fourth]
    assert not files.close_oldest()
    get(5)
    files.close()
    assert len(closed) == 5


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_opens_its_own_and_ends_nobodys_use(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    ended: list[int] = []
    files = OpenFiles(2, ended.append)
    here = files.get(0, partial(os.open, tmp_path / "x", os.O_RDONLY))
    child = os.fork()
    if not child:
        opened: list[int] = []

        def open_anew() -> int:
            opened.append(os.open(tmp_path / "x", os.O_RDONLY))
            return opened[0]

        files.get(0, open_anew)
        os._exit(7 if opened and not ended else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert os.pread(here, 1, 0) == b"1"
    os.close(here)
