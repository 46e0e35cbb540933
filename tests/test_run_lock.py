"""Two processes never train in one run folder, and no dead one keeps it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_processes import child

from inpaint_module.training import run_lock
from inpaint_module.training.run_lock import LOCK, Holder, claim, holder, release


def answer(question: Callable[[], object]) -> str:
    """What a child that holds nothing says to it, or the error that it ends in."""
    reading, writing = os.pipe()
    if not (pid := os.fork()):
        run_lock._claimed.clear()
        try:
            said = str(question())
        except ValueError as error:
            said = str(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with open(reading) as file:
        return file.read()


@pytest.mark.parametrize("trace", [True, False])
def test_another_process_is_refused_by_name_until_it_is_dead(
    trace: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "a.yaml"])
    with child(lambda: claim(tmp_path / "run")) as pid:
        if not trace:
            (tmp_path / "run" / LOCK).write_text('{"pid": 1')  # as a kill may leave it, or a full disk
        with pytest.raises(ValueError, match=f"in use by process {pid} on {socket.gethostname()}, since") as error:
            claim(tmp_path / "run")
        assert ("train.py fit --config a.yaml" in str(error.value)) == trace
        found = holder(tmp_path / "run")
        assert found is not None
        assert found.pid == pid
    assert holder(tmp_path / "run") is None
    claim(tmp_path / "run")
    release(tmp_path / "run")


def test_what_the_file_says_of_a_process_long_gone_is_not_believed(tmp_path: Path) -> None:
    with child(lambda: claim(tmp_path)) as pid:
        claimed = (tmp_path / LOCK).read_text()
        (tmp_path / LOCK).write_text(claimed.replace(f'"pid": {pid}', '"pid": 99999999'))
        assert holder(tmp_path) == Holder(pid, socket.gethostname(), "?", "?")
        (tmp_path / LOCK).write_text(claimed.replace(socket.gethostname(), "other"))
        assert holder(tmp_path) == Holder(pid, "other", *holder(tmp_path)[2:])  # type: ignore[index]


def test_workers_that_outlive_a_run_do_not_keep_its_folder(tmp_path: Path) -> None:
    pids = tmp_path / "worker"

    def run_with_worker() -> None:
        claim(tmp_path / "run")
        if not (pid := os.fork()):
            signal.pause()
        pids.write_text(str(pid))

    with child(run_with_worker):
        pass
    worker = int(pids.read_text())
    os.kill(worker, 0)  # it is there
    try:
        claim(tmp_path / "run")
        release(tmp_path / "run")
    finally:
        os.kill(worker, signal.SIGKILL)


def test_the_last_release_frees(tmp_path: Path) -> None:
    claim(tmp_path)
    claim(tmp_path / "." / "x" / "..")
    release(tmp_path)
    assert f"in use by process {os.getpid()}" in answer(lambda: answer(lambda: claim(tmp_path)))  # a child would pass
    release(tmp_path)
    release(tmp_path)
    assert answer(lambda: answer(lambda: claim(tmp_path))) == "None"


def test_processes_that_the_holder_has_started_pass(tmp_path: Path) -> None:
    claim(tmp_path)
    assert answer(lambda: (claim(tmp_path), holder(tmp_path))) == "(None, None)"
    release(tmp_path)


def test_asking_leaves_no_file(tmp_path: Path) -> None:
    assert holder(tmp_path / "nowhere") is None
    assert holder(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(run_lock, "rank_zero_info", told.append)

    def no_locks(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    claim(tmp_path)
    release(tmp_path)
    assert len(told) == 1
    assert "start no second run in it: [Errno 37] No locks available" in told[0]
