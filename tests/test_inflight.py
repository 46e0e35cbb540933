"""In-flight markers: another process's sample can be read, whatever became of the process."""

import os
import pickle

import torch
from torch.utils.data import DataLoader, IterableDataset

from datamodules.order.failures import Inflight, InflightMarkers
from datamodules.shards.shard_set import RawSample

RAW = RawSample("d/s.tar", "a/ké", {}, 7)


class Marking(IterableDataset[int]):
    """Marks in each worker a sample of its own, and clears worker 1's."""

    def __init__(self, markers: InflightMarkers) -> None:
        self.markers = markers

    def __iter__(self):  # type: ignore[no-untyped-def]
        worker = torch.utils.data.get_worker_info().id
        self.markers.mark(RAW._replace(position=worker, removal=RAW if worker == 2 else None))
        if worker == 1:
            self.markers.clear()
        while True:
            yield worker


def test_markers_outlive_their_workers() -> None:
    markers = InflightMarkers(3)
    batches = iter(DataLoader(Marking(markers), batch_size=None, num_workers=3))
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    del batches  # ends them
    name = ("d/s.tar", "a/ké")
    found = markers.in_use()
    assert [each._replace(pid=0) for each in found] == [Inflight(0, 0, 0, [name]), Inflight(2, 0, 2, [name, name])]
    markers.reset()
    assert [markers.read(worker) for worker in range(3)] == [None] * 3


def test_a_copy_has_no_view() -> None:
    markers = InflightMarkers(1)
    markers._mine = memoryview(b"")
    assert pickle.loads(pickle.dumps(markers))._mine is None


def test_in_the_main_process_nothing_is_marked() -> None:
    markers = InflightMarkers(0)
    markers.mark(RAW)
    markers.clear()


def test_a_name_too_long_is_cut() -> None:
    markers = InflightMarkers(1)
    markers._mine = memoryview(markers._slots[0].numpy())
    markers.mark(RAW._replace(key="k" * 70000))
    found = markers.read(0)
    assert found is not None
    assert found.position == 7
    assert found.samples[0][1] == "k" * (16384 - 3 - len(f"{os.getpid()}\0007\0d/s.tar\0"))
