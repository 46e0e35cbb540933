"""What masks cost: time per mask, beside drawing one at a time and beside the VAE, and peak memory.

    python -m tests.benchmarks.bench_masks                  # one CPU thread; about two minutes
    python -m tests.benchmarks.bench_masks --device cuda    # and the share of an SD-sized VAE encode of the same batch

Prints Markdown. With opencv-python installed, LaMa's drawing calls are timed too, one mask at a time, in turns with
ours.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from inpaint_module.masks import MaskGenerator, Strokes, preset, presets
from inpaint_module.randomness import Stream, key

BATCH, SIDE, GIBIBYTE = 32, 512, 2**30
LAMA = {"lama-thin": ((4, 70), 100, 20), "lama-medium": ((4, 10), 200, 100), "lama-thick": ((1, 5), 450, 250)}


def keys(number: int, device: str) -> Tensor:
    return key(0, torch.arange(number, device=device), Stream.MASK)


def seconds(work: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(works: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, float]:
    """Median seconds of each, all of them in turns, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            took = seconds(work, device)
            times[name] += [took] if turn else []
    return {name: statistics.median(took) for name, took in times.items()}


def draw_strokes(rng: np.random.Generator, count: tuple[int, int], max_len: int, max_width: int) -> np.ndarray:
    """LaMa's strokes by cv2.line."""
    import cv2  # not a dependency

    mask = np.zeros((SIDE, SIDE), np.uint8)
    for stroke in range(rng.integers(count[0], count[1] + 1)):
        x, y = (int(v) for v in rng.integers(0, SIDE, 2))
        for _ in range(rng.integers(1, 6)):
            angle = 0.01 + int(rng.integers(4))
            angle = 2 * math.pi - angle if stroke % 2 == 0 else angle
            length, width = 10 + int(rng.integers(max_len)), 5 + int(rng.integers(max_width))
            end = [min(max(int(v), 0), SIDE) for v in (x + length * math.sin(angle), y + length * math.cos(angle))]
            cv2.line(mask, (x, y), (end[0], end[1]), 1, width)
            x, y = end
    return mask


def speed(device: str, rounds: int) -> None:
    batch = keys(BATCH, device)
    works: dict[str, Callable[[], object]] = {
        name: partial(generator, batch, SIDE, SIDE) for name, generator in ((name, preset(name)) for name in presets())
    }
    if device == "cpu" and importlib.util.find_spec("cv2"):
        rng = np.random.default_rng(0)
        for name, (count, length, width) in LAMA.items():
            works[f"cv2.line, strokes of {name}"] = lambda c=count, n=length, w=width: [
                draw_strokes(rng, c, n, w) for _ in range(BATCH)
            ]
    took = medians(works, device, rounds)
    encode = vae_encode_seconds() if device == "cuda" else None
    say("| preset | ms per mask |" + (" share of VAE encode |" if encode else ""))
    say("|---|---|" + ("---|" if encode else ""))
    for name, value in took.items():
        share = f" {value / encode:.2%} |" if encode else ""
        say(f"| {name} | {value / BATCH * 1e3:.3f} |{share}")


def vae_encode_seconds() -> float:
    """Encoding one batch of photos with an autoencoder of Stable Diffusion's size, random weights, bf16."""
    from diffusers import AutoencoderKL

    widths = (128, 256, 512, 512)
    down, up = (tuple(f"{kind}Block2D" for _ in widths) for kind in ("DownEncoder", "UpDecoder"))
    vae = AutoencoderKL(block_out_channels=widths, down_block_types=down, up_block_types=up, layers_per_block=2)
    vae = vae.to("cuda", torch.bfloat16, memory_format=torch.channels_last).eval()
    photos = torch.rand(BATCH, 3, SIDE, SIDE, device="cuda").to(torch.bfloat16, memory_format=torch.channels_last)
    with torch.no_grad():
        return medians({"encode": lambda: vae.encode(photos)}, "cuda", 5)["encode"]


def peak_gibibytes(device: str, number: int, side: int, generator: MaskGenerator) -> float:
    """Peak memory above an idle process's: of a fresh process on a CPU, of the allocator on a GPU."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        generator(keys(number, device), side, side)
        return torch.cuda.max_memory_allocated() / GIBIBYTE
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_in_this_process, (number, side, generator))


def _peak_in_this_process(number: int, side: int, generator: MaskGenerator) -> float:
    torch.set_num_threads(1)
    generator(keys(1, "cpu"), 64, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    generator(keys(number, "cpu"), side, side)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / GIBIBYTE


def memory(device: str) -> None:
    say("\n| masks | peak GiB, of which masks |\n|---|---|")
    cases = [("lama-thin", preset("lama-thin"), 256, 1024)]
    for strokes in (7, 70, 700):
        generator = Strokes((strokes, strokes), (10, 109), (5, 24), resolution=512)
        cases.append((f"{strokes} thin strokes", generator, 256, 512))
    for name, generator, number, side in cases:
        peak = peak_gibibytes(device, number, side, generator)
        say(f"| {number} of {name} at {side} px | {peak:.2f}, {number * side * side / GIBIBYTE:.2f} |")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    machine = torch.cuda.get_device_name() if given.device == "cuda" else f"one thread of {platform.machine()}"
    say(f"torch {torch.__version__}, {machine}, batch {BATCH} at {SIDE} x {SIDE}, median of {given.rounds}\n")
    speed(given.device, given.rounds)
    memory(given.device)


if __name__ == "__main__":
    main()
