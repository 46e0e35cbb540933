"""What a resume costs: seconds and memory from the shards' counts to the first batch, at any position of the stream.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_resume                        # 10 million samples
    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_resume --samples 1000000      # another number of them

Prints Markdown; Linux only. Every figure is of a fresh process, after its imports: how far its peak memory lies above
where it began, and the CPU time to make the order, to compute the first batch's samples and to read the indexes of the
shards that hold them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from datamodules.shards.manifest import Shard, index_path, write_index
from datamodules.shards.shard_set import ShardSet
from datamodules.shards.tar_index import ShardIndex
from datamodules.stream.aspects import ShardAspects
from datamodules.stream.bucket_order import BucketOrder
from datamodules.stream.buckets import Buckets
from datamodules.stream.mixed_order import MixedOrder
from datamodules.stream.order import Order, SampleOrder
from datamodules.stream.sample_stream import SampleStream

BATCH, EPOCH = 64, 1000
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
    return BucketOrder(plain(shards), ShardAspects(shards), Buckets((512, 512)), batch_size=BATCH, seed=1)


KINDS: dict[str, Callable[[ShardSet], Order]] = {"plain": plain, "3 sources": mixed, "buckets": bucketed}


def memory(kind: str) -> float:
    """This process's memory in MiB: VmRSS now, VmHWM at its peak. (getrusage's peak begins with the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def even_counts(samples: int, shards: int) -> list[int]:
    """The samples, dealt out to the shards."""
    return [samples // shards + (shard < samples % shards) for shard in range(shards)]


def shard_set(folder: str, counts: list[int]) -> ShardSet:
    """Shards of one byte, whose samples are all that byte."""
    return ShardSet([Shard(f"{folder}/{number:06d}.tar", count, 1, "") for number, count in enumerate(counts)])


def write_shard(path: Path, count: int) -> None:
    """The byte and the index: key, an image, a text and a size for each sample."""
    path.write_bytes(b"x")
    keys = [f"{path.stem}{row:06d}" for row in range(count)]
    sizes = [SIZES[row % len(SIZES)] for row in range(count)]
    write_index(index_path(path), ShardIndex(keys, [{"jpg": (0, 1), "txt": (0, 1)}] * count, sizes), 1)


def first_batch(kind: str, counts: list[int], start: int, folder: str) -> tuple[float, float]:
    """CPU seconds and MiB from the counts to the raw samples of the first batch at position `start`."""
    torch.arange(4).sort()  # torch's own first use
    before, began = memory("VmRSS"), time.process_time()
    shards = shard_set(folder, counts)
    stream = iter(SampleStream(shards, KINDS[kind](shards), batch_size=BATCH, start=start))
    for _ in range(BATCH):
        next(stream)
    return time.process_time() - began, memory("VmHWM") - before


def measure(kind: str, counts: list[int], start: int) -> tuple[float, float]:
    """As `first_batch`, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        shards = shard_set(folder, counts)
        for number in KINDS[kind](shards).shards_ahead(start):
            write_shard(Path(shards.shards[number].path), counts[number])
        return pool.apply(first_batch, (kind, counts, start, folder))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000, help="in all")
    parser.add_argument("--shards", type=int, nargs="+", default=[1000, 10_000], help="to cut them into")
    arguments = parser.parse_args()
    samples = arguments.samples
    places = {"0": 0, "half": samples // 2, "last 0.1 %": samples - samples // 1000, "epoch 1000": EPOCH * samples}
    print(f"| {samples:,} samples | shards | position | CPU s | MiB |")  # noqa: T201
    print("|---|---|---|---|---|")  # noqa: T201
    for shards in arguments.shards:
        for kind in KINDS:
            for name, place in places.items():
                took, grew = measure(kind, even_counts(samples, shards), place // BATCH * BATCH)
                print(f"| {kind} | {shards:,} | {name} | {took:.2f} | {grew:.0f} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
