"""What the doctor prints: the measures in a table, then the findings."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from math import inf

from torch import Tensor, histc

from datamodules.examination.data_measures import Captions, Masks, Pixels, StoredSamples
from datamodules.examination.examination import Examination
from datamodules.examination.findings import ERROR, Finding
from datamodules.examination.model_measures import Latents, Speeds
from datamodules.shards.contents import Contents

_WIDTH, _LABEL = 110, 12
_BARS = " ▁▂▃▄▅▆▇█"


def table(exam: Examination) -> str:
    """The whole report as text."""
    lines = [f"{label:{_LABEL}}{text}" for label, text in _rows(exam)]
    account = [] if exam.contents is None else [_account(exam.contents)]
    return "\n".join([*lines, "", *account, *_findings(exam.findings)]) + "\n"


def _account(contents: Contents) -> str:
    """What the training shards hold; of the masks only those that were read are judged."""
    where = "" if contents.whole else f"of {contents.samples} "
    return contents.account.text(f"samples {where}in train_shards")


def _rows(exam: Examination) -> Iterator[tuple[str, str]]:
    if exam.pixels is not None and exam.masks is not None and exam.captions is not None:
        yield from _pixel_rows(exam.pixels, exam.sizes.seen)
        yield from _mask_rows(exam.masks)
        yield "captions", _captions(exam.captions)
        yield "samples", _samples(exam.pixels.total, exam.notes, exam.stored)
    if exam.latents is not None:
        yield from _latent_rows(exam.latents)
        yield from _grid_rows(exam)
    if exam.speeds is not None:
        yield from _speed_rows(exam.speeds, exam.workers)
    if exam.faster:
        yield "faster", f"\n{'':{_LABEL}}".join(textwrap.wrap(exam.faster, _WIDTH - _LABEL))


def _pixel_rows(pixels: Pixels, sizes: list[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    shown = ", ".join(f"{height} x {width}" for height, width in sizes)
    means = " ".join(f"{mean:.3g}" for mean in pixels.means)
    yield "images", f"{pixels.total} of {shown}, {pixels.dtype} {pixels.low:g}..{pixels.high:g}"
    yield "", f"mean of channels {means}; {len(pixels.constant)} blank"


def _mask_rows(masks: Masks) -> Iterator[tuple[str, str]]:
    own, covered = int(masks.own.sum()), masks.coverage
    empty, full = int((covered == 0).sum()), int((covered == 1).sum())
    yield "masks", f"{own} from the data, {len(covered) - own} painted; {empty} empty, {full} full"
    yield "", f"{covered.mean():.1%} masked on average; 0 % |{_histogram(covered)}| 100 %"


def _histogram(shares: Tensor) -> str:
    """Twenty bars of 5 % each; the least bar for a single one."""
    counts = histc(shares, 20, 0, 1)
    heights = (counts / counts.max() * 7).ceil().int() + (counts > 0)
    return "".join(_BARS[height] for height in heights.clamp_max(8).tolist())


def _captions(captions: Captions) -> str:
    unused = "" if captions.used else " (the model reads none)"
    common = f"; {captions.commonest} say {captions.text[:40]!r}" if captions.commonest > 1 else ""
    return f"{captions.empty} empty, {captions.median:.0f} characters, at most {captions.longest}{common}{unused}"


def _samples(count: int, notes: dict[str, list[str]], stored: StoredSamples | None) -> str:
    kinds = ["bad", "upscaled", "animated", *sorted(notes.keys() - {"bad", "upscaled", "animated", "substituted"})]
    told = [f"{len(notes.get(kind, []))} {kind}" for kind in kinds]
    if stored is not None:
        told.append(f"{sum(len(group) - 1 for group in stored.duplicates)} duplicates")
        told.append(f"{len(stored.jpeg_masks)} masks in JPEG")
    return f"{count} read: " + ", ".join(told)


def _latent_rows(latents: Latents) -> Iterator[tuple[str, str]]:
    low, high = latents.channel_stds
    lost = f"{len(latents.lost)} of {latents.total} with NaN or infinity, in {latents.dtype}"
    if not latents.psnr:
        yield "latents", lost
        return
    lost = f"; {lost}" if latents.lost else ", all finite"
    yield "latents", f"mean {latents.mean:.2f}, std {latents.std:.2f} (channels {low:.2f} to {high:.2f}){lost}"
    mean = sum(latents.psnr) / len(latents.psnr)
    yield "VAE", f"round trip {mean:.1f} dB on average, {min(latents.psnr):.1f} at worst, in {latents.dtype}"


def _grid_rows(exam: Examination) -> Iterator[tuple[str, str]]:
    yield f"grid 1/{exam.sizes.ratio}", f"{'reduction':16}{'mask lost':>10}{'too much':>10}"
    for name, grid in exam.grid.items():
        mine = "  <- this config" if name == exam.reduce else ""
        yield "", f"{name:16}{grid.leak:>10.1%}{grid.overcover:>10.1%}{mine}"


def _speed_rows(speeds: Speeds, workers: int) -> Iterator[tuple[str, str]]:
    yield "speed", f"{'stage':32}{'images/s':>10}{'ms/image':>10}"
    named = (
        ("decode, one process", speeds.decode),
        (f"loader, data.num_workers: {workers}", speeds.loader),
        ("paint masks", speeds.masks),
        ("encode", speeds.encode),
        ("denoiser and optimizer", speeds.step),
    )
    for name, rate in named:
        if rate and rate < inf:
            yield "", f"{name:32}{rate:>10.4g}{1000 / rate:>10.3g}"


def _findings(findings: list[Finding]) -> Iterator[str]:
    errors = sum(finding.severity == ERROR for finding in findings)
    warned = len(findings) - errors
    for finding in findings:
        where = "" if finding.where in finding.title else f" ({finding.where})"
        yield f"{finding.severity.upper()}: {finding.title}{where}"
        for label, text in (("expected", finding.expected), ("got", finding.came), ("do", finding.advice)):
            lines = [part for line in text.splitlines() for part in textwrap.wrap(line, _WIDTH - 12)]
            yield f"  {label:10}" + f"\n{'':12}".join(lines)
    counts = [f"{number} {what}{'s' * (number != 1)}" for number, what in ((errors, "error"), (warned, "warning"))]
    yield ", ".join(counts) if findings else "no findings"
