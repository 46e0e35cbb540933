"""What the data loop costs: images a second through two workers, beside the plain webdataset recipe.

    python -m tests.benchmarks.bench_stream                     # mosaics of the embedded photos; about five minutes
    python -m tests.benchmarks.bench_stream --photos FOLDER     # your photos

Prints Markdown. All loaders read the same shards, give squares of 256 pixels in batches of 32, and take turns. CPU time
is that of workers and consumer together; it is steadier than the clock on a machine that does other things.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
import torchvision
import webdataset as wds
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from datamodules.make_shards import make_shards
from datamodules.shards.shard_specs import open_shards
from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.masks import Boxes
from tests.photo_mosaics import mosaic

SIDE, BATCH, WORKERS, IN_FLIGHT = 256, 32, 2, 2 * 2
Loader = Callable[[], Iterable[Any]]


class Rate(NamedTuple):
    """Images a second by the clock, and milliseconds of CPU time per image."""

    images: float
    cpu: float


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def plain(shards: list[str], transform: Callable[[Any], Any]) -> Iterable[Any]:
    """The recipe of webdataset's documentation."""
    images = wds.WebDataset(shards, shardshuffle=False, resampled=True).decode("pil")
    samples = images.to_tuple("jpg;jpeg;png;webp").map_tuple(transform)
    return wds.WebLoader(samples, batch_size=BATCH, num_workers=WORKERS)


def bare(shards: list[str]) -> Iterable[Any]:
    """torchvision's decoder and nothing else: no crop, no resize, no pixel leaves the worker."""
    raw = wds.WebDataset(shards, shardshuffle=False, resampled=True).to_tuple("jpg;jpeg")
    samples = raw.map_tuple(decode_only)
    return wds.WebLoader(samples, batch_size=BATCH, num_workers=WORKERS)


def decode_only(data: bytes) -> torch.Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB).new_zeros(1)


def ours(folder: Path, gap: float) -> Iterable[Any]:
    """The data module's training batches, without what happens on the device."""
    options: dict[str, Any] = {"batch_size": BATCH, "image_size": SIDE, "num_workers": WORKERS, "reducing_gap": gap}
    return WebDatasetDataModule(str(folder), mask_generator=Boxes(), **options).train_dataloader()


def loaders(folder: Path) -> dict[str, Loader]:
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    flip, crop = v2.RandomHorizontalFlip(), v2.RandomResizedCrop(SIDE, antialias=True)
    like_ours = v2.RandomResizedCrop(SIDE, scale=(0.25, 1.0), ratio=(1.0, 1.0), antialias=True)
    normalize = v2.Normalize([0.5], [0.5])  # as in the training examples of diffusers
    floats = v2.Compose([crop, flip, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalize])
    bytes_ = v2.Compose([like_ours, flip, v2.ToImage()])
    return {
        "plain recipe, float": lambda: plain(shards, floats),
        "plain recipe, uint8, our crops": lambda: plain(shards, bytes_),
        "torchvision decode_jpeg alone": lambda: bare(shards),
        "ours": lambda: ours(folder, 1.5),
        "ours, reducing_gap 2": lambda: ours(folder, 2.0),
        "ours, reducing_gap 1": lambda: ours(folder, 1.0),
    }


def cpu_seconds(processes: Iterable[int]) -> float:
    """User and system time so far of these processes (Linux)."""
    fields = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in processes]
    return sum(int(row[11]) + int(row[12]) for row in fields) / os.sysconf("SC_CLK_TCK")


def measure(loader: Loader, batches: int) -> Rate:
    """One turn of a fresh loader, timed after what its workers have prepared at the start."""
    before = {child.pid for child in multiprocessing.active_children()}
    iterator = iter(loader())
    for _ in range(2 * IN_FLIGHT):
        next(iterator)
    processes = [os.getpid(), *({child.pid for child in multiprocessing.active_children()} - before)]
    clock, cpu = time.perf_counter(), cpu_seconds(processes)
    for _ in range(batches):
        next(iterator)
    clock, cpu = time.perf_counter() - clock, cpu_seconds(processes) - cpu
    return Rate(batches * BATCH / clock, 1e3 * cpu / (batches * BATCH))


def write_mosaics(folder: Path, width: int, height: int, quality: int, count: int) -> Path:
    (folder / "photos").mkdir()
    for number in range(count):
        mosaic(number, width, height).save(folder / "photos" / f"{number:03d}.jpg", quality=quality)
    make_shards(folder / "photos", folder / "shards", samples_per_shard=-(-count // 4))
    return folder / "shards"


def describe(folder: Path) -> str:
    """How many photos, of what size."""
    photos = open_shards(str(folder))
    rows = []
    for number in range(0, len(photos), max(1, len(photos) // 50)):
        data = next(iter(photos.read(number).fields.values()))
        with tempfile.TemporaryFile() as file:
            file.write(data)
            width, height = Image.open(file).size
        rows.append((width * height / 1e6, 8 * len(data) / width / height))
    pixels, bits = np.median(rows, axis=0)
    return f"{len(photos)} photos, median {pixels:.2f} megapixels, {bits:.2f} bits per pixel"


def compare(title: str, folder: Path, rounds: int, batches: int) -> None:
    named = loaders(folder)
    rates: dict[str, list[Rate]] = {name: [] for name in named}
    for _ in range(rounds):
        for name, loader in named.items():
            rates[name].append(measure(loader, batches))
    base = "plain recipe, float"
    say(f"\n{title}: {describe(folder)}\n")
    say("| loader | images/s | CPU ms per image | times the plain recipe's: by clock, by CPU time |")
    say("|---|---|---|---|")
    for name, rows in rates.items():
        images, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        faster = statistics.median(row.images / other.images for row, other in zip(rows, rates[base], strict=True))
        cheaper = statistics.median(other.cpu / row.cpu for row, other in zip(rows, rates[base], strict=True))
        say(f"| {name} | {images:.0f} | {cpu:.2f} | {faster:.2f}, {cheaper:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of images instead of the mosaics")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=10)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message="The image decoding and encoding")
    torch.set_num_threads(1)
    versions = f"Pillow {PIL.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    say(f"{platform.machine()}, {os.cpu_count()} CPUs, {WORKERS} workers, {versions}, median of {given.rounds} rounds")
    with tempfile.TemporaryDirectory() as name:
        if given.photos:
            make_shards(given.photos, Path(name) / "shards", shard_bytes=8_000_000)
            compare(given.photos.name, Path(name) / "shards", given.rounds, given.batches)
            return
        for number, (width, height, quality) in enumerate([(1536, 1024, 90), (1792, 1152, 75)]):
            folder = Path(name) / str(number)
            folder.mkdir()
            shards = write_mosaics(folder, width, height, quality, 96)
            compare(f"{width} x {height}, quality {quality}", shards, given.rounds, given.batches)


if __name__ == "__main__":
    main()
