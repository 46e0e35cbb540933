"""Checks of what the model makes of the data; see `findings`."""

from __future__ import annotations

import math

from datamodules.examination.data_measures import Sizes
from datamodules.examination.findings import ERROR, WARNING, Finding, named
from datamodules.examination.model_measures import Grid, Latents, Speeds

_STD = ((0.4, 2.5), (0.6, 1.7))  # outside the first is an error, outside the second a warning
_MEAN = (2.0, 1.0)
_PSNR = (15.0, 20.0)  # dB; a good VAE has 25 and more
_LEAK = 0.05


def check_finite(latents: Latents) -> list[Finding]:
    """NaN and infinity, of a VAE whose activations do not fit its dtype."""
    if not latents.lost:
        return []
    came = f"NaN or infinity in {len(latents.lost)} of {latents.total} in {latents.dtype}: {named(latents.lost)}"
    advice = "load the VAE in bfloat16 or float32: dtype of model.encoder.vae"
    if latents.dtype != "float16":
        advice = "look for NaN in the VAE's weights and in the pictures"
    title = "overflow in the VAE" if latents.dtype == "float16" else "NaN from the VAE"
    where, expected = "model.encoder.vae", "finite latents and decoded pictures"
    return [Finding(ERROR, title, where, expected, came, advice, tuple(latents.lost))]


def check_latents(latents: Latents) -> list[Finding]:
    """The denoiser's space has a mean of about 0 and a std of about 1; a VAE gives back about what it got."""
    if not latents.psnr:
        return []
    found, where = [], "model.encoder.vae"
    if not _STD[1][0] <= latents.std <= _STD[1][1] or abs(latents.mean) > _MEAN[1]:
        bad = not _STD[0][0] <= latents.std <= _STD[0][1] or abs(latents.mean) > _MEAN[0]
        came = f"mean {latents.mean:.2f}, std {latents.std:.2f}"
        advice = "take the base model's own VAE, and see scaling_factor or latents_mean and latents_std in its config"
        severity = ERROR if bad else WARNING
        found.append(Finding(severity, "latents off scale", where, "mean about 0, std about 1", came, advice))
    mean = sum(latents.psnr) / len(latents.psnr)
    if mean < _PSNR[1]:
        came = f"{mean:.1f} dB on average, {min(latents.psnr):.1f} at worst"
        advice = "look at the sheet: noise or wrong colours say wrong or untrained weights, blur too small pictures"
        severity = ERROR if mean < _PSNR[0] else WARNING
        found.append(Finding(severity, "bad VAE round trip", where, f"a PSNR of {_PSNR[1]:.0f} dB", came, advice))
    return found


def check_grid(grid: dict[str, Grid], reduce: str) -> list[Finding]:
    """The config's reduction should not forget much of the masks."""
    mine = grid.get(reduce)
    if mine is None or mine.leak <= _LEAK:
        return []
    came = f"{mine.leak:.1%} of the masked pixels are in cells that say keep"
    advice = "set reduce: max, which forgets nothing, or paint wider masks"
    return [Finding(WARNING, "masks leak", "model.layout.reduce", f"at most {_LEAK:.0%}", came, advice)]


def check_loss(loss: float) -> list[Finding]:
    """A first step must be finite."""
    if math.isfinite(loss):
        return []
    return [Finding(ERROR, "loss", "model", "a finite loss", str(loss), "look at the denoiser's dtype and weights")]


def faster(speeds: Speeds, sizes: Sizes, *, workers: int, cores: int, cached: bool, gpu: bool) -> str:
    """One sentence on what limits a training step, and what would help."""
    if not speeds.encode or not speeds.step:
        return ""
    step = 1 / speeds.masks + 1 / speeds.encode + 1 / speeds.step  # seconds per image
    if speeds.decode and speeds.decode * max(workers, 1) * step < 1:
        return _more_data(speeds.decode, step, workers, cores)
    if speeds.decode and not workers and (share := 1 / (1 + speeds.decode * step)) > 0.05:
        return f"decoding takes {share:.0%} of the time of the training process: set data.num_workers: 1 to hide it"
    if gpu and (share := 1 / speeds.masks / step) > 0.05:
        advice = "put inpaint_module.masks.CudaGraphed around data.mask_generator"
        return f"painting masks takes {share:.0%} of a step, most of it the CPU's: {advice}"
    compiling = ", configs/compiled.yaml compiles for a GPU" if gpu else ""
    if (share := 1 / speeds.encode / step) > 0.3 and not cached:
        advice = "inpaint shards cache-latents halves that, configs/bf16.yaml helps where bfloat16 is native"
        return f"the VAE takes {share:.0%} of a step: {advice}{compiling}"
    largest = max(sizes.seen, default=(0, 0))
    share = 1 / speeds.step / step
    what = f"the denoiser and its optimizer take {share:.0%} of a step at {largest[0]} x {largest[1]}"
    return f"{what}; the data keeps up{compiling}"


def _more_data(decode: float, step: float, workers: int, cores: int) -> str:
    need = math.ceil(1 / (decode * step))
    have = f"{decode * max(workers, 1):.0f} images/s are read and decoded, a step could take {1 / step:.0f}"
    if need <= cores:
        return f"{have}: set data.num_workers: {need}"
    shrink = "store smaller images (inpaint shards make --short-side)"
    return f"{have}, for which {need} workers were needed on {cores} cores: {shrink}"
