"""What a resume costs: seconds and memory from the shards' counts to the first batch, at any position of the stream.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_resume                        # 10 million samples
    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_resume --samples 1000000      # another number of them
    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_resume --quick                # seconds: does it run?

Prints Markdown; Linux only. Every figure is of a fresh process, after its imports: how far its peak memory lies above
where it began, and the CPU time to make the order, to compute the first batch's samples and to read the indexes of the
shards that hold them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from datamodules.order.bucket_order import AspectRatios, BucketOrder, Buckets
from datamodules.order.order import MixedOrder, Order, SampleOrder
from datamodules.order.sample_stream import SampleStream
from datamodules.shards.manifest import Shard, index_path, write_index
from datamodules.shards.shard_set import ShardSet
from datamodules.shards.tar_index import ShardIndex
from tests.benchmarks import machine
from tests.benchmarks.markdown import table
from tests.benchmarks.peak_memory import MEBIBYTE, in_fresh_process, rise

BATCH, EPOCH = 64, 1000
_SAMPLE = 2048  # bytes of a tar: two headers, two bodies
SIZES = [(1200, 800), (800, 600), (640, 640), (600, 800), (1920, 1080)]


def plain(shards: ShardSet) -> Order:
    """One source."""
    return SampleOrder(shards.counts, seed=1)


def mixed(shards: ShardSet) -> Order:
    """Three sources with weights."""
    third = len(shards.counts) // 3
    parts = (shards.counts[:third], shards.counts[third : 2 * third], shards.counts[2 * third :])
    return MixedOrder([SampleOrder(part, seed=1) for part in parts], [5.0, 2.0, 1.0], seed=1)


def bucketed(shards: ShardSet) -> Order:
    """One source in aspect-ratio buckets."""
    return BucketOrder(plain(shards), AspectRatios(shards), Buckets((512, 512)), batch_size=BATCH, seed=1)


KINDS: dict[str, Callable[[ShardSet], Order]] = {"plain": plain, "3 sources": mixed, "buckets": bucketed}


def even_counts(samples: int, shards: int) -> list[int]:
    """The samples, dealt out to the shards."""
    return [samples // shards + (shard < samples % shards) for shard in range(shards)]


def shard_set(folder: str, counts: list[int]) -> ShardSet:
    """Shards of nothing, whose samples have one byte in each field."""
    shards = [Shard(f"{folder}/{number:06d}.tar", count, _SAMPLE * count, "") for number, count in enumerate(counts)]
    return ShardSet(shards)


def write_shard(path: Path, count: int) -> None:
    """A file without content on the disk, and the index: key, an image, a text and a size for each sample."""
    path.touch()
    os.truncate(path, _SAMPLE * count)
    keys = [f"{path.stem}{row:06d}" for row in range(count)]
    sizes = [SIZES[row % len(SIZES)] for row in range(count)]
    fields = [{"jpg": (_SAMPLE * row + 512, 1), "txt": (_SAMPLE * row + 1536, 1)} for row in range(count)]
    write_index(index_path(path), ShardIndex(keys, fields, sizes), _SAMPLE * count)


def first_batch(kind: str, counts: list[int], start: int, folder: str) -> tuple[float, float]:
    """CPU seconds and MiB from the counts to the raw samples of the first batch at position `start`."""
    torch.arange(4).sort()  # torch's own first use
    took: list[float] = []

    def read() -> None:
        began = time.process_time()
        shards = shard_set(folder, counts)
        stream = iter(SampleStream(shards, KINDS[kind](shards), batch_size=BATCH, start=start))
        for _ in range(BATCH):
            next(stream)
        took.append(time.process_time() - began)

    grew = rise(read, "cpu")
    return took[0], grew / MEBIBYTE


def measure(kind: str, counts: list[int], start: int, *, fresh: bool = True) -> tuple[float, float]:
    """As `first_batch`, in a fresh process, unless it is only asked whether it runs."""
    with tempfile.TemporaryDirectory() as folder:
        shards = shard_set(folder, counts)
        for number in KINDS[kind](shards).shards_ahead(start):
            write_shard(Path(shards.shards[number].path), counts[number])
        arguments = (kind, counts, start, folder)
        return in_fresh_process(first_batch, *arguments) if fresh else first_batch(*arguments)


def rows(samples: int, shard_numbers: list[int], *, fresh: bool) -> Iterable[tuple[Any, ...]]:
    """CPU seconds and MiB by kind of order, number of shards and position."""
    places = {"0": 0, "half": samples // 2, "last 0.1 %": samples - samples // 1000, "epoch 1000": EPOCH * samples}
    for shards in shard_numbers:
        for kind in KINDS:
            for name, place in places.items():
                counts = even_counts(samples, shards)
                took, grew = measure(kind, counts, place // BATCH * BATCH, fresh=fresh)
                yield kind, f"{shards:,}", name, f"{took:.2f}", f"{grew:.0f}"


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000, help="in all")
    parser.add_argument("--shards", type=int, nargs="+", default=[1000, 10_000], help="to cut them into")
    parser.add_argument("--quick", action="store_true", help="few samples, all in this process: does it run?")
    options = parser.parse_args(arguments)
    samples, shards = (10_000, [20]) if options.quick else (options.samples, options.shards)
    note = "All in one process." if options.quick else "Each figure is of a fresh process, one run."
    machine.heading("Resume benchmark", "cpu", note)
    header = (f"{samples:,} samples", "shards", "position", "CPU s", "MiB")
    table("From the shards' counts to the first batch", header, rows(samples, shards, fresh=not options.quick))


if __name__ == "__main__":
    main()
