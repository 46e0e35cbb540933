"""What the data loop costs: images a second through two workers, beside the plain webdataset recipe.

    python -m tests.benchmarks.bench_stream                     # mosaics of the embedded photos; about five minutes
    python -m tests.benchmarks.bench_stream --photos FOLDER     # your photos
    python -m tests.benchmarks.bench_stream --quick             # seconds: does it run?

Prints Markdown. All loaders read the same shards, give squares of 256 pixels in batches of 32, and take turns. CPU time
is that of workers and consumer together; it is steadier than the clock on a machine that does other things.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from datamodules import DecoderOptions
from datamodules.make_shards import make_shards
from datamodules.shards.shard_specs import open_shards
from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.masks import Boxes
from tests.benchmarks import machine
from tests.benchmarks.markdown import table
from tests.benchmarks.timing import cpu_seconds
from tests.photo_mosaics import mosaic

SIDE, BATCH, WORKERS, IN_FLIGHT = 256, 32, 2, 2 * 2
Loader = Callable[[], Iterable[Any]]


class Mosaics(NamedTuple):
    """Pictures to make: `count` of them, out of this many photos."""

    width: int
    height: int
    quality: int
    count: int = 96
    photos: int = 166


MOSAICS = (Mosaics(1536, 1024, 90), Mosaics(1792, 1152, 75))
QUICK = (Mosaics(512, 256, 90, count=4, photos=8),)


class Rate(NamedTuple):
    """Images a second by the clock, and milliseconds of CPU time per image."""

    images: float
    cpu: float


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
    """Decode, and give next to nothing back."""
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB).new_zeros(1)


def ours(folder: Path, gap: float) -> Iterable[Any]:
    """The data module's training batches, without what happens on the device."""
    options: dict[str, Any] = {"batch_size": BATCH, "image_size": SIDE, "num_workers": WORKERS}
    return WebDatasetDataModule(
        str(folder), mask_generator=Boxes(), decoder=DecoderOptions(reducing_gap=gap), **options
    ).train_dataloader()


def loaders(folder: Path) -> dict[str, Loader]:
    """All that are compared, over the shards in a folder."""
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
        "ours": lambda: ours(folder, 2.0),
        "ours, reducing_gap 1.5": lambda: ours(folder, 1.5),
        "ours, reducing_gap 1": lambda: ours(folder, 1.0),
    }


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


def write_mosaics(folder: Path, form: Mosaics) -> Path:
    """Their shards."""
    (folder / "photos").mkdir(parents=True)
    for number in range(form.count):
        image = mosaic(number, form.width, form.height, form.photos)
        image.save(folder / "photos" / f"{number:03d}.jpg", quality=form.quality)
    make_shards(folder / "photos", folder / "shards", samples_per_shard=-(-form.count // 4))
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
    """All loaders over the same shards, in turns."""
    named = loaders(folder)
    rates: dict[str, list[Rate]] = {name: [] for name in named}
    for _ in range(rounds):
        for name, loader in named.items():
            rates[name].append(measure(loader, batches))
    header = ("loader", "images/s", "CPU ms per image", "times the plain recipe's: by clock, by CPU time")
    table(f"{title}: {describe(folder)}", header, rows(rates, rates["plain recipe, float"]))


def rows(rates: dict[str, list[Rate]], base: list[Rate]) -> Iterable[tuple[str, ...]]:
    """Medians of the rounds, and of each round's ratio to the base."""
    for name, rounds in rates.items():
        images, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        faster = statistics.median(row.images / other.images for row, other in zip(rounds, base, strict=True))
        cheaper = statistics.median(other.cpu / max(row.cpu, 1e-9) for row, other in zip(rounds, base, strict=True))
        yield name, f"{images:.0f}", f"{cpu:.2f}", f"{faster:.2f}, {cheaper:.2f}"


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of images instead of the mosaics")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="few small photos, one round: does it run?")
    given = parser.parse_args(arguments)
    rounds, batches, forms = (1, 1, QUICK) if given.quick else (given.rounds, given.batches, MOSAICS)
    warnings.filterwarnings("ignore", message="The image decoding and encoding")
    torch.set_num_threads(1)
    machine.heading("Stream benchmark", "cpu", f"{WORKERS} workers, median of {rounds} round(s), loaders in turns.")
    with tempfile.TemporaryDirectory() as name:
        if given.photos:
            make_shards(given.photos, Path(name) / "shards", shard_bytes=8_000_000)
            compare(given.photos.name, Path(name) / "shards", rounds, batches)
            return
        for number, form in enumerate(forms):
            shards = write_mosaics(Path(name) / str(number), form)
            compare(f"{form.width} x {form.height}, quality {form.quality}", shards, rounds, batches)


if __name__ == "__main__":
    main()
