"""Prefetcher: in order, so many at a time, never in anybody's way."""

from __future__ import annotations

import pickle
import threading

from datamodules.shards.local_files import Prefetcher


class Work:
    """Keeps what it was called with; waits at 'wait', fails at 'fail'."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.go_on = threading.Event()
        self.begun = threading.Event()

    def __call__(self, item: str) -> None:
        if item == "wait":
            self.begun.set()
            assert self.go_on.wait(10)
        if item == "fail":
            raise OSError(item)
        self.done.append(item)


def test_in_order_and_past_failures() -> None:
    work = Work()
    prefetcher = Prefetcher(work)
    prefetcher.start(["a", "fail", "b"])
    prefetcher.join(10)
    assert work.done == ["a", "b"]
    prefetcher.start(["c"])
    prefetcher.join(10)
    assert work.done == ["a", "b", "c"]


def test_the_new_take_the_place_of_those_that_wait() -> None:
    work = Work()
    prefetcher = Prefetcher(work)
    prefetcher.start(["wait", "old"])
    assert work.begun.wait(10)
    prefetcher.start(["new"])
    work.go_on.set()
    prefetcher.join(10)
    assert work.done == ["wait", "new"]


def test_so_many_at_a_time() -> None:
    work = Work()
    prefetcher = Prefetcher(work, threads=2)
    before = threading.active_count()
    prefetcher.start(["wait", "wait", "a"])
    assert work.begun.wait(10)
    assert threading.active_count() == before + 2
    work.go_on.set()
    prefetcher.join(10)
    assert sorted(work.done) == ["a", "wait", "wait"]
    assert threading.active_count() == before


def test_a_copy_begins_with_nothing() -> None:
    prefetcher = Prefetcher(len, threads=3)
    prefetcher.start(["a"])
    copy = pickle.loads(pickle.dumps(prefetcher))
    assert (copy.work, copy.threads, copy._running) == (len, 3, [])
    copy.start(["a"])
    copy.join(10)
    prefetcher.join(10)
