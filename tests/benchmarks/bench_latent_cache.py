"""What a latent cache saves and costs, on the quickstart's model and photos; A and B take turns in one run.

    python -m tests.benchmarks.bench_latent_cache                  # CPU; about two minutes on one core
    python -m tests.benchmarks.bench_latent_cache --device cuda
    python -m tests.benchmarks.bench_latent_cache --quick          # seconds: does it run?

Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from datamodules.cache_latents import cache_latents, parts_from_configs
from datamodules.shards.tar_index import LATENTS_FIELD
from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.trained import module_from_configs
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from tests.benchmarks import machine
from tests.benchmarks.markdown import table
from tests.benchmarks.step_settings import CONFIG
from tests.benchmarks.timing import MILLISECOND, medians


def first_batch(data: WebDatasetDataModule, device: str) -> dict[str, Any]:
    """As training gets it."""
    batch = next(iter(data.train_dataloader()))
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    return data.on_after_batch_transfer(moved, 0)


def step_rows(
    module: InpaintDiffusion, batch: dict[str, Any], seconds: float, device: str
) -> Iterable[tuple[Any, ...]]:
    """A whole training step, its loss alone without gradients, and the encoder's part of it."""
    optimizer = torch.optim.AdamW(module.denoiser.parameters(), lr=1e-5)
    plain = {name: value for name, value in batch.items() if name != "latents"}

    def step(given: dict[str, Any]) -> None:
        optimizer.zero_grad()
        module.loss(given).backward()
        optimizer.step()

    for name, call in (("training step", step), ("encoding in it", module.encode)):
        calls = {"without": lambda call=call: call(plain), "with": lambda call=call: call(batch)}
        took = medians(calls, device, seconds=seconds)
        without, cached = took["without"] / MILLISECOND, took["with"] / MILLISECOND
        yield name, without, cached, without / cached


def loading_row(plain: WebDatasetDataModule, cached: WebDatasetDataModule, seconds: float) -> tuple[Any, ...]:
    """Reading and decoding one sample."""
    loaders = {"without": iter(plain.train_dataloader()), "with": iter(cached.train_dataloader())}
    calls = {name: lambda loader=loader: next(loader) for name, loader in loaders.items()}
    took = medians(calls, "cpu", seconds=seconds)
    without, cached_time = (took[name] / MILLISECOND / plain.batch_size for name in ("without", "with"))
    return "reading and decoding a sample", without, cached_time, without / cached_time


def size_rows(plain: WebDatasetDataModule, caches: dict[str, WebDatasetDataModule]) -> Iterable[tuple[Any, ...]]:
    """Kilobytes of a sample, on the average."""
    for name, data in {"source": plain, **caches}.items():
        shards = data.train_set
        fields = [shards.read(number).fields for number in islice(range(len(shards)), 100)]
        latents = sum(len(each.get(LATENTS_FIELD, b"")) for each in fields) / len(fields)
        yield name, sum(shard.bytes for shard in shards.shards) / len(shards) / 1000, latents / 1000


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    options = parser.parse_args(arguments)
    size = ["--data.image_size=64", "--data.batch_size=2"] if options.quick else []
    seconds = 0.1 if options.quick else 30.0
    machine.heading("Latent cache benchmark", options.device, "Medians; the two sides take turns in one run.")
    parts, module = parts_from_configs([CONFIG], size), module_from_configs([CONFIG]).to(options.device)
    parts.encoder.to(options.device)
    with tempfile.TemporaryDirectory() as folder:
        caches = {}
        for dtype in ("float32", "bfloat16"):
            cache_latents(parts.data, parts.encoder, Path(folder) / dtype, dtype=dtype)
            where = [*size, f"--data.train_shards={folder}/{dtype}"]
            caches[f"cache, {dtype}"] = parts_from_configs([CONFIG], where).data
        cached = caches["cache, float32"]
        header = ["", "without a cache, ms", "with, ms", "times as fast"]
        rows = [*step_rows(module, first_batch(cached, options.device), seconds, options.device)]
        table(f"Time, {options.device}", header, [*rows, loading_row(parts.data, cached, seconds)])
        table("Size", ["", "kB a sample", "of it latents"], size_rows(parts.data, caches))


if __name__ == "__main__":
    main()
