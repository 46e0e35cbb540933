"""What masks cost: time per mask, beside drawing one at a time and beside the VAE, and peak memory.

    python -m tests.benchmarks.bench_masks                  # one CPU thread; about two minutes
    python -m tests.benchmarks.bench_masks --device cuda    # and the share of an SD-sized VAE encode of the same batch
    python -m tests.benchmarks.bench_masks --quick          # seconds: does it run?

Prints Markdown. With opencv-python installed, LaMa's drawing calls are timed too, one mask at a time, in turns with
ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inpaint_module.masks import CudaGraphed, MaskGenerator, Strokes, preset, presets
from inpaint_module.randomness import Stream, key
from tests.benchmarks import machine
from tests.benchmarks.markdown import table
from tests.benchmarks.peak_memory import in_fresh_process, rise
from tests.benchmarks.sd_sized_vae import SD_CHANNELS, sd_sized_vae
from tests.benchmarks.timing import MILLISECOND, medians

GIBIBYTE = 2**30
LAMA = {"lama-thin": ((4, 70), 100, 20), "lama-medium": ((4, 10), 200, 100), "lama-thick": ((1, 5), 450, 250)}


class Scale(NamedTuple):
    """How much of everything."""

    batch: int = 32
    side: int = 512
    many: int = 256  # masks at once, of which the memory is measured
    many_side: int = 1024
    strokes: tuple[int, ...] = (7, 70, 700)
    vae_channels: tuple[int, ...] = SD_CHANNELS


QUICK = Scale(2, 64, 2, 64, (7,), (32, 32, 32, 32))


def keys(number: int, device: str) -> Tensor:
    """Of that many masks, int64 (number,)."""
    return key(0, torch.arange(number, device=device), Stream.MASK)


def draw_strokes(
    rng: np.random.Generator, count: tuple[int, int], max_len: int, max_width: int, side: int
) -> np.ndarray:
    """LaMa's strokes by cv2.line."""
    import cv2  # not a dependency

    mask = np.zeros((side, side), np.uint8)
    for stroke in range(rng.integers(count[0], count[1] + 1)):
        x, y = (int(v) for v in rng.integers(0, side, 2))
        for _ in range(rng.integers(1, 6)):
            angle = 0.01 + int(rng.integers(4))
            angle = 2 * math.pi - angle if stroke % 2 == 0 else angle
            length, width = 10 + int(rng.integers(max_len)), 5 + int(rng.integers(max_width))
            end = [min(max(int(v), 0), side) for v in (x + length * math.sin(angle), y + length * math.cos(angle))]
            cv2.line(mask, (x, y), (end[0], end[1]), 1, width)
            x, y = end
    return mask


def speed(scale: Scale, device: str, rounds: int) -> None:
    """Time per mask of every preset, in turns; on a GPU also as a share of the VAE's time."""
    batch, side = keys(scale.batch, device), scale.side
    works: dict[str, Callable[[], object]] = {name: partial(preset(name), batch, side, side) for name in presets()}
    if device == "cpu" and importlib.util.find_spec("cv2"):
        works |= one_at_a_time(scale)
    took = medians(works, device, rounds=rounds)
    header, columns = ["preset", "ms per mask"], [took]
    if device == "cuda":
        replays = {name: partial(CudaGraphed(preset(name)), batch, side, side) for name in presets()}
        columns.append(medians(replays, device, rounds=rounds))
        header += ["by a CUDA graph", "share of VAE encode", "by a CUDA graph"]
    encode = vae_encode_seconds(scale) if device == "cuda" else None
    rows = (
        (
            name,
            *(f"{column[name] / scale.batch / MILLISECOND:.3f}" for column in columns),
            *(f"{column[name] / encode:.2%}" for column in columns if encode),
        )
        for name in took
    )
    table(f"Time, batch {scale.batch} at {side} x {side}", header, rows)


def one_at_a_time(scale: Scale) -> dict[str, Callable[[], object]]:
    """As many of LaMa's masks by its own drawing calls."""
    rng = np.random.default_rng(0)

    def draw(*sizes: Any) -> list[np.ndarray]:
        return [draw_strokes(rng, *sizes, scale.side) for _ in range(scale.batch)]

    return {f"cv2.line, strokes of {name}": partial(draw, *sizes) for name, sizes in LAMA.items()}


def vae_encode_seconds(scale: Scale) -> float:
    """Encoding one batch of photos with an autoencoder of Stable Diffusion's size, random weights, bf16."""
    vae = sd_sized_vae(scale.vae_channels, "cuda", torch.bfloat16)
    photos = torch.rand(scale.batch, 3, scale.side, scale.side, device="cuda")
    photos = photos.to(torch.bfloat16)
    with torch.no_grad():
        return medians({"encode": lambda: vae.encode(photos)}, "cuda", rounds=5)["encode"]


def peak_gibibytes(device: str, number: int, side: int, generator: MaskGenerator) -> float:
    """Peak memory of one call in this process."""
    torch.set_num_threads(1)
    generator(keys(1, device), 64, 64)
    return rise(lambda: generator(keys(number, device), side, side), device) / GIBIBYTE


def memory_rows(scale: Scale, device: str) -> Iterable[tuple[str, str]]:
    """Peak memory above what was held before, and how much of it the masks themselves are."""
    cases: list[tuple[str, MaskGenerator, int]] = [("lama-thin", preset("lama-thin"), scale.many_side)]
    for strokes in scale.strokes:
        generator = Strokes((strokes, strokes), (10, 109), (5, 24), resolution=512)
        cases.append((f"{strokes} thin strokes", generator, scale.side))
    fresh = device == "cpu" and scale != QUICK
    for name, generator, side in cases:
        arguments = (device, scale.many, side, generator)
        peak = in_fresh_process(peak_gibibytes, *arguments) if fresh else peak_gibibytes(*arguments)
        yield f"{scale.many} of {name} at {side} px", f"{peak:.2f}, {scale.many * side * side / GIBIBYTE:.2f}"


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="small sizes, one round: does it run?")
    given = parser.parse_args(arguments)
    scale, rounds = (QUICK, 1) if given.quick else (Scale(), given.rounds)
    torch.set_num_threads(1)
    machine.heading("Mask benchmark", given.device, f"Median of {rounds} round(s), presets in turns.")
    speed(scale, given.device, rounds)
    table("Memory", ("masks", "peak GiB, of which masks"), memory_rows(scale, given.device))


if __name__ == "__main__":
    main()
