"""What preprocessing costs, beside the straightforward way and beside the VAE; A and B take turns in one run.

    python -m tests.benchmarks.bench_encoder                  # CPU; about ten minutes on two cores
    python -m tests.benchmarks.bench_encoder --device cuda    # and bf16, compile, one VAE pass against two
    python -m tests.benchmarks.bench_encoder --quick          # seconds: does it run?

Prints Markdown.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from inpaint_module import InpaintEncoder, morphology
from inpaint_module.frozen_vae import FrozenVAE, Posterior
from tests.benchmarks import machine, reference_node
from tests.benchmarks.markdown import table
from tests.benchmarks.peak_memory import MEBIBYTE, in_fresh_process, rise
from tests.benchmarks.sd_sized_vae import SD_CHANNELS, sd_sized_vae
from tests.benchmarks.timing import MILLISECOND, medians

# dense bf16 tensor-core peaks of NVIDIA's data sheets, FLOP/s
BF16_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12}


class Scale(NamedTuple):
    """How much of everything."""

    kernels: tuple[int, ...] = (2, 3, 6, 16, 33, 64)
    batch: int = 8
    side: int = 512
    seconds: float = 10  # per comparison
    vae_channels: tuple[int, ...] = SD_CHANNELS


QUICK = Scale((2, 16), 2, 64, 0.05, (32, 32, 32, 32))


class Batch(NamedTuple):
    """The same images and holes in the form that each side takes.

    Attributes:
        pixels: uint8 (B, 3, H, W), for the encoder.
        hole: bool (B, 1, H, W).
        image: float32 (B, H, W, 3), for the reference.
        mask: float32 (B, 1, H, W).
    """

    pixels: Tensor
    hole: Tensor
    image: Tensor
    mask: Tensor


class NoVAE(FrozenVAE):
    """Costs nothing: zeros for latents. What is left of the encoder's time is preprocessing."""

    ratio, channels = 8, 4

    def posterior(self, pixels: Tensor) -> Posterior:
        height, width = pixels.shape[-2:]
        return Posterior(pixels.new_zeros(len(pixels), 4, height // 8, width // 8), None)

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError

    normalize = denormalize = decode

    def to(self, device: torch.device) -> None:
        pass

    def fingerprint(self) -> bytes:
        return bytes(32)


def new_batch(batch: int, side: int, device: str) -> Batch:
    """Noise for images; a box per hole (the cost of neither side depends on what is in them)."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator).to(device)
    hole = torch.zeros(batch, 1, side, side, dtype=torch.bool, device=device)
    hole[..., side // 4 : side // 2, side // 8 : side // 2] = True
    return Batch(pixels, hole, (pixels.float() / 255).movedim(1, -1).contiguous(), hole.float())


def check_equal(data: Batch, kernel: int) -> None:
    """Both sides must do the same work before their times mean anything."""
    image, noise_mask = reference_node.prepare(data.image, data.mask, kernel)
    seen: list[Tensor] = []
    vae = NoVAE()
    vae.posterior = lambda pixels: seen.append(pixels) or NoVAE.posterior(vae, pixels)  # type: ignore[method-assign]
    found = InpaintEncoder(vae, kernel)(data.pixels, data.hole)
    assert torch.equal(found.noise_mask, noise_mask)
    torch.testing.assert_close(seen[0], image.movedim(-1, 1), rtol=0, atol=1e-6)


def dilation_rows(scale: Scale, device: str) -> Iterable[tuple[Any, ...]]:
    """Bool mask to float noise mask, against float mask to float noise mask by conv2d and by separable pooling.

    On a CPU with opencv-python, bytes to bytes by its dilate too, one mask at a time: ours goes over to floats besides.
    """
    data = new_batch(scale.batch, scale.side, device)
    for kernel in scale.kernels:
        plan = morphology.plan_dilation(morphology.square(kernel))
        calls: dict[str, Callable[[], Any]] = {
            "ours": lambda plan=plan: morphology.dilate(data.hole, plan).float(),
            "conv2d": lambda kernel=kernel: reference_node.grow(data.mask, kernel),
            "pooling": lambda kernel=kernel: reference_node.pool(data.mask, kernel),
        }
        assert torch.equal(calls["ours"](), calls["pooling"]())
        if device == "cpu" and importlib.util.find_spec("cv2"):
            calls |= {"ours, bool": lambda plan=plan: morphology.dilate(data.hole, plan), "cv2": opencv(data, kernel)}
            assert np.array_equal(np.stack(calls["cv2"]()), calls["ours"]()[:, 0].numpy())
        took = medians(calls, device, seconds=scale.seconds)
        others = [took[name] / took["ours"] for name in ("conv2d", "pooling")]
        bare = took["cv2"] / took["ours, bool"] if "cv2" in took else math.nan
        yield kernel, took["ours"] / MILLISECOND, *others, bare


def opencv(data: Batch, kernel: int) -> Callable[[], list[np.ndarray]]:
    """The strongest alternative on a CPU: OpenCV's dilate on bytes, one thread as torch has here."""
    import cv2  # not a dependency

    cv2.setNumThreads(torch.get_num_threads())
    masks, window = list(data.hole[:, 0].numpy().view(np.uint8)), np.ones((kernel, kernel), np.uint8)
    return lambda: [cv2.dilate(mask, window, anchor=(kernel // 2, kernel // 2)) for mask in masks]


def preprocessing_rows(scale: Scale, device: str) -> Iterable[tuple[Any, ...]]:
    """All of the encoder but the VAE: from bytes here, from floats that are already in 0..1 there."""
    data = new_batch(scale.batch, scale.side, device)
    for kernel in scale.kernels:
        check_equal(data, kernel)
        encoder = InpaintEncoder(NoVAE(), kernel).to(device)
        calls = {
            "ours": lambda encoder=encoder: encoder(data.pixels, data.hole),
            "reference": lambda kernel=kernel: reference_node.prepare(data.image, data.mask, kernel),
        }
        yield kernel, *columns(medians(calls, device, seconds=scale.seconds))


def columns(took: dict[str, float]) -> tuple[float, float, float]:
    """Milliseconds of both, and how many times faster ours is."""
    return took["ours"] / MILLISECOND, took["reference"] / MILLISECOND, took["reference"] / took["ours"]


def share_rows(scale: Scale, device: str) -> Iterable[tuple[Any, ...]]:
    """Preprocessing beside the VAE, with one image and all of a batch's work (`target=True` needs two encodes)."""
    batch = 1 if device == "cpu" else scale.batch
    data, vae = new_batch(batch, scale.side, device), sd_sized_vae(scale.vae_channels, device)
    for target in (False, True):
        light, heavy = InpaintEncoder(NoVAE(), 16).to(device), InpaintEncoder(vae, 16).to(device)
        calls = {
            "preprocessing": lambda light=light, target=target: light(data.pixels, data.hole, target),
            "whole": lambda heavy=heavy, target=target: heavy(data.pixels, data.hole, target),
        }
        took = medians(calls, device, seconds=scale.seconds)
        share = 100 * took["preprocessing"] / (took["whole"] - took["preprocessing"])
        yield batch, target, took["preprocessing"] / MILLISECOND, took["whole"] / MILLISECOND, share


def peak_rows(scale: Scale, device: str) -> Iterable[tuple[Any, ...]]:
    """Extra memory of one call above what its inputs take."""
    for kernel in (scale.kernels[0], scale.kernels[-1]):
        ours, theirs = (peak(name, scale, kernel, device) for name in ("ours", "reference"))
        yield kernel, ours / MEBIBYTE, theirs / MEBIBYTE, theirs / max(ours, 1)


def peak(name: str, scale: Scale, kernel: int, device: str) -> int:
    """Bytes; on the CPU of a fresh process, unless it is only asked whether it runs."""
    arguments = (name, scale, kernel, device)
    return (
        measured_peak(*arguments) if device == "cuda" or scale == QUICK else in_fresh_process(measured_peak, *arguments)
    )


def measured_peak(name: str, scale: Scale, kernel: int, device: str) -> int:
    """Bytes of one call in this process."""
    data = new_batch(scale.batch, scale.side, device)
    encoder = InpaintEncoder(NoVAE(), kernel).to(device)

    def call(batch: Batch) -> Any:
        if name == "ours":
            return encoder(batch.pixels, batch.hole)
        return reference_node.prepare(batch.image, batch.mask, kernel)

    call(new_batch(1, 16, device))
    return rise(lambda: call(data), device)


def encode_rows(scale: Scale, *, eager: bool) -> Iterable[tuple[Any, ...]]:
    """The whole encoder with `target=True`: images/s by dtype, compiled or not, one pass on 2B or two on B."""
    data, peak_flops = new_batch(scale.batch, scale.side, "cuda"), bf16_peak()
    for dtype in (torch.float32, torch.bfloat16):
        vae = sd_sized_vae(scale.vae_channels, "cuda", dtype)
        one, two = (InpaintEncoder(vae, 16, max_batch=m).to("cuda") for m in (2 * scale.batch, None))
        work = encode_flops(one, data)
        calls: dict[str, Callable[[], Any]] = {
            "eager, one pass on 2B": lambda one=one: one(data.pixels, data.hole, True),
            "eager, two passes on B": lambda two=two: two(data.pixels, data.hole, True),
        }
        if not eager:
            compiled = torch.compile(one)
            calls["compiled, one pass on 2B"] = lambda compiled=compiled: compiled(data.pixels, data.hole, True)
        for name, seconds in medians(calls, "cuda", seconds=scale.seconds).items():
            share = 100 * work / seconds / peak_flops if peak_flops else float("nan")
            yield str(dtype)[6:], name, seconds / MILLISECOND, scale.batch / seconds, share


def encode_flops(encoder: InpaintEncoder, data: Batch) -> int:
    """Floating point operations of one call with `target=True`: matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        encoder(data.pixels, data.hole, True)
    return counter.get_total_flops()


def compiled_rows(scale: Scale, *, eager: bool) -> Iterable[tuple[Any, ...]]:
    """Preprocessing alone on the GPU, eager against compiled."""
    data = new_batch(scale.batch, scale.side, "cuda")
    encoder = InpaintEncoder(NoVAE(), 16).to("cuda")
    calls = {"eager": lambda: encoder(data.pixels, data.hole, True)}
    if not eager:
        compiled = torch.compile(encoder)
        calls["compiled"] = lambda: compiled(data.pixels, data.hole, True)
    for name, seconds in medians(calls, "cuda", seconds=scale.seconds).items():
        yield name, seconds / MILLISECOND, scale.batch / seconds


def bf16_peak() -> float | None:
    """Of this card, where it is known."""
    name = torch.cuda.get_device_name()
    return next((peak for card, peak in BF16_PEAKS.items() if card in name), None)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Run all tables of a device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--eager", action="store_true", help="without the compiled rows of a GPU")
    options = parser.parse_args(arguments)
    device = options.device
    full = Scale(seconds=1) if device == "cuda" else Scale()  # whose times waver less
    scale = QUICK if options.quick else full
    size = f"{scale.batch} x {scale.side} x {scale.side}"
    sides = ("k", "ours, ms", "conv2d reference, ms", "times faster")
    machine.heading("Encoder benchmark", device, "Medians; the two sides of a ratio take turns in one run.")
    others = ("conv2d / ours", "separable pooling / ours", "cv2.dilate / ours, both without floats")
    table(f"Dilation, {size}", ("k", "ours, ms", *others), dilation_rows(scale, device))
    table(f"Preprocessing (all but the VAE), {size}", sides, preprocessing_rows(scale, device))
    memory = "allocator's peak" if device == "cuda" else "rise of the process's high-water mark"
    table(
        f"Memory of preprocessing, {size}, {memory}",
        ("k", "ours, MiB", "reference, MiB", "reference / ours"),
        peak_rows(scale, device),
    )
    table(
        f"Share of the step: AutoencoderKL {scale.vae_channels}, {scale.side} px, float32, k = 16",
        ("batch", "target", "preprocessing, ms", "with the VAE, ms", "preprocessing / VAE, %"),
        share_rows(scale, device),
    )
    if device == "cuda":
        table(
            f"Preprocessing with target, {size}, k = 16",
            ("", "ms", "images/s"),
            compiled_rows(scale, eager=options.eager),
        )
        table(
            f"The whole encoder with target, {size}, AutoencoderKL {scale.vae_channels}",
            ("VAE dtype", "", "ms", "images/s", "% of the card's dense bf16 peak"),
            encode_rows(scale, eager=options.eager),
        )


if __name__ == "__main__":
    main()
