"""Look at the data of a config before training: inpaint doctor --config configs/quickstart.yaml

Reads a few batches as `fit` does, sends them through the config's VAE and one training step, and reports
what is wrong: pixel range, blank and duplicate images, inverted, empty and lossy masks, mask lost on the latent grid,
sizes, captions, the VAE's round trip, scale and overflow, bad samples, a source that does not answer. Says how fast
each stage is, and what would be faster. With --all it looks at every sample instead, without a model, and writes one
page: sizes, aspects, buckets, captions and tags, mask coverage, near-duplicates, bad files. Nothing of a run is
written or changed.

Exit codes, for CI: 0 if there is no error, 1 if there is, 2 if the command itself is wrong. With --strict warnings
are errors.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path

import torch
from jsonargparse import Namespace
from PIL import Image, ImageDraw
from torch import Tensor, histc

from datamodules.account import write_out
from datamodules.doctor.data_measures import Captions, Masks, Pixels, StoredSamples, describe_pairs
from datamodules.doctor.examination import Examination, examine
from datamodules.doctor.findings import ERROR, Finding
from datamodules.doctor.model_measures import Latents, Speeds, data_from_configs
from datamodules.doctor.whole_set import look_at_all, page, summary
from datamodules.shards.shard_set import Contents
from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.cli import options
from inpaint_module.cli.errors import exit_code_of
from inpaint_module.cli.parser import device_of
from inpaint_module.files import atomic_write_picture, atomic_write_text, check_replaceable, permissions_for, redact
from inpaint_module.pixels import to_unit_float
from inpaint_module.report.pages import SheetRow, fitted, masked_in_red, sheet, to_pil

_MAKER = "inpaint doctor"
_MOST_BAD = 10
_ALL_BAD = ["--data.loading.max_bad_share=1.0"]  # name all of them, instead of ending at the first few

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
        if exam.pairs is not None:
            yield "pairs", describe_pairs(exam.pairs)
        yield "samples", _samples(exam.pixels.total, exam.notes, exam.stored)
    if exam.latents is not None:
        yield from _latent_rows(exam.latents)
        yield from _grid_rows(exam)
    if exam.speeds is not None:
        yield from _speed_rows(exam.speeds, exam.workers)
    if exam.faster:
        yield "faster", f"\n{'':{_LABEL}}".join(textwrap.wrap(exam.faster, _WIDTH - _LABEL))


def _pixel_rows(pixels: Pixels, sizes: list[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    found = ", ".join(f"{height} x {width}" for height, width in sizes)
    means = " ".join(f"{mean:.3g}" for mean in pixels.means)
    yield "images", f"{pixels.total} of {found}, {pixels.dtype} {pixels.low:g}..{pixels.high:g}"
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
    counts = [f"{len(notes.get(kind, []))} {kind}" for kind in kinds]
    if stored is not None:
        counts.append(f"{sum(len(group) - 1 for group in stored.duplicates)} duplicates")
        counts.append(f"{len(stored.jpeg_masks)} masks in JPEG")
    return f"{count} read: " + ", ".join(counts)


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


_TILE = 176  # pixels of the longer side
_HEADS = ("image", "mask", "grown mask", "masked image", "VAE round trip")
_EDGE = (160, 160, 165)


def draw_sheet(exam: Examination, title: str, rows: int = 8) -> Image.Image | None:
    """Image, mask, grown mask, masked image and round trip in a row per sample; None if nothing was read."""
    places: dict[str, tuple[int, int]] = {}
    for key, place in _places(exam):
        places.setdefault(key, place)
    if not places:
        return None
    chosen = telling_first(list(places), exam.findings)[:rows]
    made = [_row(exam, key, *places[key]) for key in chosen]
    return sheet(title, _HEADS[: len(made[0].pictures)], made)


def telling_first(keys: Sequence[str], findings: Sequence[Finding]) -> list[str]:
    """The keys, each once: the first of each finding, then the second of each, and so on; at last those of none."""
    last = max((len(finding.keys) for finding in findings), default=0)
    rank = dict.fromkeys(keys, last)
    for finding in findings:
        for place, key in enumerate(dict.fromkeys(finding.keys)):
            rank[key] = min(place, rank.get(key, last))
    return sorted(dict.fromkeys(keys), key=rank.__getitem__)


def _places(exam: Examination) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each key with the numbers of its batch and of its row; of what went through the VAE, if anything did."""
    looked_at = exam.encoded or exam.batches
    for number, batch in enumerate(exam.batches[: len(looked_at)]):
        keys = exam.encoded[number].keys if exam.encoded else batch["__key__"]
        for index, key in enumerate(keys):
            yield key, (number, index)


def _pictures(exam: Examination, number: int, index: int) -> list[Image.Image]:
    """The columns of one sample."""
    batch = exam.batches[number]
    photo = to_pil(_unit(batch["image"][index]))
    pictures = [photo, masked_in_red(photo, batch["mask"][index, 0] > 0.5)]
    if exam.encoded:
        encoded = exam.encoded[number]
        seen = (encoded.grown[index].expand(3, -1, -1), encoded.masked[index], encoded.decoded[index])
        pictures += [to_pil(each.nan_to_num(0, 0, 0)) for each in seen]
    return [_framed(each) for each in pictures]


def _unit(image: Tensor) -> Tensor:
    """Any image as 0..1; out-of-range floats are stretched to it."""
    image = image[:3].cpu()
    if image.dtype == torch.uint8:
        return to_unit_float(image)
    low, high = image.min().clamp_max(0), image.max().clamp_min(1)
    return ((image - low) / (high - low)).nan_to_num(0)


def _row(exam: Examination, key: str, number: int, index: int) -> SheetRow:
    batch = exam.batches[number]
    titles = [finding.title.upper() for finding in exam.findings if key in finding.keys]
    share = (batch["mask"][index] > 0.5).float().mean().item()
    words = f"{key}   masked {share:.0%}   {', '.join(titles)}"
    caption = batch["caption"][index] if "caption" in batch else ""
    return SheetRow(_pictures(exam, number, index), [words, caption or "(no caption)"])


def _framed(picture: Image.Image) -> Image.Image:
    picture = fitted(picture, _TILE)
    ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=_EDGE)  # white ends there
    return picture


def exit_code(exam: Examination, *, strict: bool = False) -> int:
    """1 if there is an error, or with `strict` any finding; else 0."""
    return int(any(strict or finding.severity == ERROR for finding in exam.findings))


def run(given: Namespace, overrides: Sequence[str]) -> int:
    """The command, with what `options.doctor` parsed; ends the process if a thread waits for a stalled source."""
    code, stalled = examined(given, overrides)
    sys.stdout.flush()
    if stalled:
        os._exit(code)  # the thread would hold up the end
    return code


def examined(given: Namespace, overrides: Sequence[str]) -> tuple[int, bool]:
    """Examine and report: the exit code, and whether a thread is left that waits for a stalled source."""
    try:
        device = device_of(given.device)
    except ValueError as error:
        options.doctor().error(f"--{error}")
    if given.all:
        return all_examined(given, overrides), False
    if given.out is not None:
        check_replaceable(given.out, _MAKER)
    chosen = {"batches": given.batches, "timeout": given.timeout, "step": not given.no_step, "device": device}
    exam = examine(given.config, overrides, **chosen)
    write_out(redact(table(exam)))
    if given.out is not None and (sheet := draw_sheet(exam, ", ".join(map(str, given.config)))) is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_picture(given.out, sheet, _MAKER)
        sys.stdout.write(f"sheet: {given.out}\n")
    return exit_code(exam, strict=given.strict), exam.stalled


def all_examined(given: Namespace, overrides: Sequence[str]) -> int:
    """Look at the whole training set, write the page and report; the exit code, 1 if a sample cannot be used.

    Raises:
        ValueError: the page's name does not end in .html, or another program's file is there.
    """
    out = given.out or Path("doctor.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out: expected a name that ends in .html for the page of --all, got {out}")
    check_replaceable(out, _MAKER)
    data = data_from_configs(given.config, [*overrides, *_ALL_BAD])
    if not isinstance(data, WebDatasetDataModule):
        raise ValueError(f"data: expected datamodules.WebDatasetDataModule for --all, got {type(data).__name__}")
    found = look_at_all(data, progress=True)
    shards = [data.train_shards] if isinstance(data.train_shards, str) else data.train_shards
    out.parent.mkdir(parents=True, exist_ok=True)
    text = page(found, redact(", ".join(shards)), _MAKER)
    atomic_write_text(out, text, permissions=permissions_for(text))
    write_out("".join(f"{name:17}{words}\n" for name, words in summary(found).items()))
    write_out("".join(f"bad: {redact(each.fault)}\n" for each in found.bad[:_MOST_BAD]))
    sys.stdout.write(f"page: {out}\n")
    return int(bool(found.bad) or (given.strict and bool(found.alike)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command, within this process; returns the exit code."""
    return examined(*options.doctor().parse(arguments))[0]


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: run(*options.doctor().parse())))
