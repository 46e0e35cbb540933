"""ordered_map: results in order, little in work, errors passed on."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamodules.writing.ordered_pool import ordered_map


def work(number: int) -> tuple[int, int]:
    if number == 13:
        raise ValueError("thirteen")
    if number == 99:
        os._exit(9)
    time.sleep(0.02 * (number % 3 == 0))
    return number, os.getpid()


def meet(paths: tuple[Path, Path]) -> int:
    mine, other = paths
    mine.touch()
    deadline = time.monotonic() + 60
    while not other.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert other.exists()
    return os.getpid()


def is_deaf(_: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_workers_never_hear_ctrl_c() -> None:
    """From their first moment: one that was starting died of it, with a traceback."""
    assert all(ordered_map(is_deaf, range(4), workers=2, preload=__name__))
    assert not is_deaf(0)


def test_order_and_bound() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while taken < 12:
            taken += 1
            yield taken

    seen = []
    for number, process in ordered_map(work, items(), workers=2, preload=__name__):
        seen.append(number)
        assert process != os.getpid()
        assert taken - len(seen) < 8
    assert seen == list(range(1, 13))


def test_workers_work_at_the_same_time(tmp_path: Path) -> None:
    """Each of the two items waits for the other to have begun: one worker alone would wait in vain."""
    a, b = tmp_path / "a", tmp_path / "b"
    first, second = ordered_map(meet, [(a, b), (b, a)], workers=2, preload=__name__)
    assert len({first, second, os.getpid()}) == 3


def test_one_worker_is_this_process() -> None:
    assert list(ordered_map(work, [1, 2], workers=1, preload=__name__)) == [(1, os.getpid()), (2, os.getpid())]


def test_errors_come_in_their_place() -> None:
    results = ordered_map(work, [12, 13, 14], workers=2, preload=__name__)
    assert next(results)[0] == 12
    with pytest.raises(ValueError, match="thirteen"):
        next(results)


def test_a_dead_worker_is_an_error() -> None:
    with pytest.raises(OSError, match="a worker process died; is the memory full"):
        list(ordered_map(work, [1, 99, 2], workers=2, preload=__name__))


def test_closing_ends_the_workers() -> None:
    results = ordered_map(work, range(50, 90), workers=2, preload=__name__)
    process = next(results)[1]
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_no_workers() -> None:
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        list(ordered_map(work, [1], workers=0, preload=__name__))
