"""The whole training step, from shard to optimizer: ours against the way of published examples, in turns in one run.

    python -m tests.benchmarks.bench_step                                  # CPU; a quarter of an hour on two cores
    python -m tests.benchmarks.bench_step --device cuda                    # with the denoiser under bf16 autocast
    python -m tests.benchmarks.bench_step --vae-dtype float32 --workers 4  # without the rows of a bfloat16 VAE
    python -m tests.benchmarks.bench_step --quick                          # seconds: does it run?

Prints Markdown. Denoiser, optimizer (ours in one fused pass, as in the quickstart), scheduler, photos, sizes, batch and
number of workers are the same for all rows; each round builds every row anew, lets its loader and its step settle, and
times some steps. Rows and phases are medians of the rounds, ratios medians of each round's ratio. The published way is
in published_step.py.

Workers share the CPU with the step: where both need it, reading slows all phases down, not only the wait for data. So
the workers' CPU time stands beside it; CPU time is also steadier than the clock on a machine that does other things.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from tests.benchmarks import machine
from tests.benchmarks.markdown import table
from tests.benchmarks.our_step import OurStep
from tests.benchmarks.peak_memory import MEBIBYTE, in_fresh_process, rise
from tests.benchmarks.published_step import PublishedStep
from tests.benchmarks.step_settings import Setting, settings
from tests.benchmarks.timing import MILLISECOND, cpu_seconds, timed
from tests.benchmarks.training_step import PHASES, PREFETCH, Place, TrainingStep

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Variant(NamedTuple):
    """A row: a way to train and its options."""

    name: str
    step: type[TrainingStep]
    vae_dtype: str = "float32"
    autocast: bool = False  # the denoiser computes in bfloat16
    channels_last: bool = False  # the denoiser's weights
    fused: bool = False  # the optimizer
    cached: bool = False  # clean latents, made before
    compiled: bool = False  # the denoiser, with CUDA graphs; in ours the VAE too, and masks by CUDA graphs

    def build(self, setting: Setting, place: Place) -> TrainingStep:
        """Fresh models and optimizer."""
        options = {name: getattr(self, name) for name in ("channels_last", "fused", "cached", "compiled")}
        place = place._replace(autocast=self.autocast or place.autocast)
        return self.step(setting, place, vae_dtype=DTYPES[self.vae_dtype], **options)


VARIANTS = (
    Variant("published example", PublishedStep),
    Variant("published example, all in bfloat16", PublishedStep, "bfloat16", autocast=True),
    Variant("ours", OurStep, fused=True),
    Variant("ours, denoiser channels_last", OurStep, channels_last=True, fused=True),
    Variant("ours, VAE bfloat16", OurStep, "bfloat16", fused=True),
    Variant("ours, configs/bf16.yaml", OurStep, "bfloat16", autocast=True, fused=True),
    Variant("ours, latent cache", OurStep, fused=True, cached=True),
    Variant("ours, configs/bf16.yaml, latent cache", OurStep, "bfloat16", autocast=True, fused=True, cached=True),
)
BASE = VARIANTS[0]
QUICK = (BASE, VARIANTS[2], VARIANTS[-1])
CUDA_VARIANTS = (
    BASE,
    Variant("published example, all in bfloat16", PublishedStep, "bfloat16"),
    Variant("published example, all in bfloat16, denoiser compiled", PublishedStep, "bfloat16", compiled=True),
    Variant("ours", OurStep, fused=True),
    Variant("ours, configs/bf16.yaml", OurStep, "bfloat16", fused=True),
    Variant("ours, + configs/compiled.yaml", OurStep, "bfloat16", fused=True, compiled=True),
    Variant("ours, + latent cache", OurStep, "bfloat16", fused=True, compiled=True, cached=True),
)
CUDA_QUICK = (BASE, CUDA_VARIANTS[3], VARIANTS[-1])


class Turn(NamedTuple):
    """What one round says of a variant, in seconds per image.

    Attributes:
        phases: of each phase of the step, in the order of PHASES.
        models: VAE encoder and denoiser alone, on tensors that are ready.
        cpu: CPU time of this process and of the loader's workers.
        loading: that of the workers alone.
        peak: bytes of a step above what is held before it, on a GPU; 0 on the CPU, where they need a fresh process.
    """

    phases: tuple[float, ...]
    models: float
    cpu: float
    loading: float
    peak: int

    @property
    def step(self) -> float:
        """The whole."""
        return sum(self.phases)


def turn(setting: Setting, variant: Variant, place: Place) -> Turn:
    """Build, let settle, time."""
    others = {child.pid for child in multiprocessing.active_children()}
    step = variant.build(setting, place)
    batches = step.batches()
    for _ in range(PREFETCH * place.workers):  # what the workers have made at leisure while nobody took it
        next(batches)
    for _ in range(max(3 if place.device == "cuda" else 1, setting.steps // 5)):  # CUDA graphs begin at the third
        step.run(batches)
    workers = {child.pid for child in multiprocessing.active_children()} - others
    step.clock.restart()
    before, loading = cpu_seconds([os.getpid()]), cpu_seconds(workers)
    for _ in range(setting.steps):
        step.run(batches)
    seconds, images = step.clock.stop(), setting.batch * setting.steps
    own, loading = cpu_seconds([os.getpid()]) - before, cpu_seconds(workers) - loading
    phases = tuple(seconds.get(phase, 0.0) / images for phase in PHASES)
    highest = rise(lambda: step.train_on(next(batches)), place.device) if place.device == "cuda" else 0
    models = models_alone(step, batches, place) / setting.batch
    return Turn(phases, models, (own + loading) / images, loading / images, highest)


def models_alone(step: TrainingStep, batches: Iterator[dict[str, Any]], place: Place) -> float:
    """Seconds of a step's VAE and denoiser calls; half as many times as steps were timed."""
    again = step.models_alone(next(batches))
    return statistics.median(timed(again, place.device) for _ in range(-(-step.setting.steps // 2)))


def measured_peak(setting: Setting, variant: Variant, place: Place) -> int:
    """Bytes of a step in this process, above weights, optimizer state and a batch."""
    torch.set_num_threads(place.threads)
    step = variant.build(setting, place)
    batch = next(step.batches())
    step.train_on({name: smaller(value, setting.image_size) for name, value in batch.items()})
    return rise(lambda: step.train_on(batch), place.device)


def smaller(value: Any, side: int) -> Any:
    """One sample; of images of that side, and of their latents, the corner of 64 pixels; notes as they are."""
    if isinstance(value, torch.Tensor) and value.ndim == 4:
        corner = 64 * value.shape[-1] // side
        return value[:1, ..., :corner, :corner]
    return value if isinstance(value, dict) else value[:1]


def peak(setting: Setting, variant: Variant, place: Place, *, quick: bool) -> int:
    """Bytes on the CPU, of a fresh process, unless it is only asked whether it runs."""
    if quick:
        return measured_peak(setting, variant, place)
    return in_fresh_process(measured_peak, setting, variant, place._replace(workers=0))


def median_of(turns: Iterable[Turn], what: Callable[[Turn], float]) -> float:
    """Over the rounds."""
    return statistics.median(map(what, turns))


def speed_rows(turns: dict[Variant, list[Turn]], peak_of: Callable[[Variant], int]) -> Iterable[tuple[Any, ...]]:
    """Images a second, beside the base's; how much of the step is VAE and denoiser; memory."""
    for variant, rounds in turns.items():
        pairs = list(zip(rounds, turns[BASE], strict=True))
        faster = statistics.median(base.step / own.step for own, base in pairs)
        alone = median_of(rounds, lambda own: 100 * own.models / own.step)
        cheaper = statistics.median(base.cpu / max(own.cpu, 1e-9) for own, base in pairs)
        images = 1 / median_of(rounds, lambda own: own.step)
        highest = median_of(rounds, lambda own: own.peak) or peak_of(variant)
        yield (
            variant.name,
            images,
            f"{faster:.2f}, {cheaper:.2f}",
            f"{alone:.0f}",
            f"{highest / MEBIBYTE:,.0f}",
        )


def phase_rows(turns: dict[Variant, list[Turn]]) -> Iterable[tuple[str, ...]]:
    """Milliseconds of an image in each phase and its share of their sum, and beside them the workers' CPU time."""
    for variant, rounds in turns.items():
        phases = [median_of(rounds, lambda own, n=n: own.phases[n]) for n in range(len(PHASES))]
        cells = [f"{took / MILLISECOND:.2f} ({100 * took / sum(phases):.0f} %)" for took in phases]
        loading = median_of(rounds, lambda own: own.loading)
        yield variant.name, *cells, f"{loading / MILLISECOND:.2f}"


def compare(setting: Setting, variants: list[Variant], place: Place, rounds: int, *, quick: bool) -> None:
    """All variants in turns, and both tables."""
    turns: dict[Variant, list[Turn]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant, seen in turns.items():
            seen.append(turn(setting, variant, place))
            sys.stderr.write(f"{setting.title}, {variant.name}: {1 / seen[-1].step:.4g} images/s\n")
            gc.collect()  # workers and weights of this turn must not weigh on the next
    million = sum(weight.numel() for weight in setting.new_denoiser().parameters()) / 1e6
    sizes = f"{setting.image_size} px, batch {setting.batch}, denoiser of {million:.0f} M parameters"
    kind = "allocator's" if place.device == "cuda" else "process's"
    faster, alone = "times published: by clock, by CPU time", "VAE + denoiser alone, % of the step"
    header = ("", "images/s", faster, alone, f"peak of a step, {kind} MiB")
    peak_of = partial(peak, setting, place=place, quick=quick)
    table(f"{setting.title}: {sizes}", header, speed_rows(turns, peak_of))
    header = ("ms per image (share)", *PHASES, "workers' CPU")
    table(f"{setting.title}: where the time goes", header, phase_rows(turns))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="small models, one round: does it run?")
    parser.add_argument("--workers", type=int, help="of the loaders; 2 on the CPU, 8 beside a GPU")
    help_threads = "torch threads; 1 on the CPU, where it leaves the other cores to the workers and to whoever is there"
    parser.add_argument("--threads", type=int, help=help_threads)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--setting", type=int, choices=(1, 2), help="the first or the second one alone")
    help_dtype = "which dtypes of the VAE get rows; the published example in float32 is always there"
    parser.add_argument("--vae-dtype", choices=DTYPES, nargs="+", default=list(DTYPES), help=help_dtype)
    help_precision = "of the denoiser: float32, or under bfloat16 autocast, which is the default on cuda"
    parser.add_argument("--precision", choices=DTYPES, help=help_precision)
    options = parser.parse_args(arguments)
    options.workers = (8 if options.device == "cuda" else 2) if options.workers is None else options.workers
    options.threads = options.threads or torch.get_num_threads()
    options.precision = options.precision or ("bfloat16" if options.device == "cuda" else "float32")
    options.rounds = 1 if options.quick else options.rounds
    return options


def main(arguments: list[str] | None = None) -> None:
    """Both settings, or one."""
    options = parsed(arguments)
    place = Place(options.device, options.workers, options.threads, options.precision == "bfloat16")
    torch.set_num_threads(place.threads)
    denoiser = "under bfloat16 autocast" if place.autocast else "in float32"
    rounds = f"median of {options.rounds} round(s), rows in turns"
    note = f"{place.workers} loader worker(s) for each row, denoiser {denoiser}, {rounds}."
    machine.heading("Training step benchmark", place.device, note)
    full, short = (CUDA_VARIANTS, CUDA_QUICK) if place.device == "cuda" else (VARIANTS, QUICK)
    rows = short if options.quick else full
    variants = [variant for variant in rows if variant is BASE or variant.vae_dtype in options.vae_dtype]
    chosen = settings(place.device, quick=options.quick)
    for setting in chosen if options.setting is None else [chosen[options.setting - 1]]:
        compare(setting, variants, place, options.rounds, quick=options.quick)


if __name__ == "__main__":
    main()
