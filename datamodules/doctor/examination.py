"""An examination: a few batches of a config, through its data module and its model, measured and checked."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentError
from lightning.pytorch import LightningDataModule
from torch import Tensor

from datamodules.doctor import data_measures, findings, model_measures
from datamodules.doctor.data_measures import Captions, Masks, Pairs, Pixels, Sizes, StoredSamples, measure_pairs
from datamodules.doctor.findings import ERROR, Finding
from datamodules.doctor.model_measures import Encoded, Grid, Latents, Speeds, autocast
from datamodules.order.sample_stream import SampleStream
from datamodules.shards.shard_set import Contents, RawSample
from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.base_models import NoConditioning
from inpaint_module.batch import Batch, LatentsTag
from inpaint_module.clean_latents import check_clean
from inpaint_module.cli.errors import cause_of
from inpaint_module.frozen_vae import VAEOverflowError
from inpaint_module.trained import module_from_configs
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

T = TypeVar("T")
_ENCODED = 32  # at most so many images go through the VAE
_EXPECTED = (ValueError, TypeError, KeyError, AttributeError, OSError, ImportError, RuntimeError, ArgumentError)


@dataclass
class Examination:
    """What was measured, as far as it got, and found; `notes` are the loader's, `faster` says what would be."""

    findings: list[Finding] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    encoded: list[Encoded] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=lambda: Sizes([], 1, 1))
    pixels: Pixels | None = None
    masks: Masks | None = None
    captions: Captions | None = None
    pairs: Pairs | None = None
    stored: StoredSamples | None = None
    contents: Contents | None = None
    latents: Latents | None = None
    grid: dict[str, Grid] = field(default_factory=dict)
    reduce: str = ""
    speeds: Speeds | None = None
    workers: int = 0
    faster: str = ""
    stalled: bool = False

    def attempt(self, action: Callable[[], T], where: str, expected: str, advice: str) -> T | None:
        """The result of an action; None, and a finding, if it fails."""
        try:
            return action()
        except data_measures.StalledError as error:
            self.stalled = True
            advice = "see that the source answers, or wait longer with --timeout"
            finding = Finding(ERROR, "stalled source", where, "an answer in time", str(error), advice)
        except _EXPECTED as failure:
            cause = cause_of(failure)
            title = "overflow in the VAE" if isinstance(cause, VAEOverflowError) else f"{where} fails"
            finding = Finding(ERROR, title, where, expected, _message(cause), advice)
        self.findings.append(finding)
        return None


def _message(error: BaseException) -> str:
    """A message with its notes, and the kind of error where that is half of it."""
    text = " ".join([str(error), *getattr(error, "__notes__", ())])
    plain = isinstance(error, (ValueError, OSError, ArgumentError)) and str(error)
    return text if plain else f"{type(error).__name__}: {text}"


def examine(
    configs: Sequence[Path],
    overrides: Sequence[str] = (),
    *,
    batches: int = 4,
    timeout: float = 120.0,
    device: str | torch.device = "cpu",
    step: bool = True,
) -> Examination:
    """Read, encode and train a little, as `train.py fit` would with these configs; nothing is written.

    Args:
        configs: files, the later over the earlier.
        overrides: options such as `--data.batch_size=2` and `--model.encoder.grow_mask_by=0`.
        batches: how many are read; at most 32 images go through the VAE.
        timeout: seconds without a batch after which the source counts as stalled.
        device: where the model works.
        step: also time a training step; it takes the memory of one.
    """
    exam, device = Examination(), torch.device(device)
    given = {part: [each for each in overrides if each.startswith(f"--{part}.")] for part in ("model", "data")}
    advice = "mend the config; the message names the key"
    module = exam.attempt(lambda: module_from_configs(configs, given["model"]), "model", "a model that builds", advice)
    data = exam.attempt(
        lambda: model_measures.data_from_configs(configs, given["data"]), "data", "data that opens", advice
    )
    if data is not None:
        examine_data(exam, data, module, batches=batches, timeout=timeout, device=device)
    if data is not None and module is not None and exam.pixels is not None and not findings.check_range(exam.pixels):
        options: dict[str, Any] = {"precision": model_measures.precision_of(configs), "step": step}
        examine_model(exam, data, module.to(device), device=device, **options)
    exam.findings.sort(key=lambda finding: finding.severity != ERROR)
    return exam


def examine_data(
    exam: Examination,
    data: LightningDataModule,
    module: InpaintDiffusion | None,
    *,
    batches: int,
    timeout: float,
    device: torch.device,
) -> None:
    """Read batches as the trainer does, and the files behind them."""

    advice = "mend the source; the message names the sample or the key"
    came = exam.attempt(lambda: _read(data, batches, timeout), "data", "batches", advice)
    exam.workers = getattr(data, "num_workers", 0)
    if not came:
        return
    own = [data_measures.masks_of_the_data(batch) for batch, _ in came]
    painted = exam.attempt(
        lambda: [_arrive(data, batch, number, device) for number, (batch, _) in enumerate(came)],
        "data",
        "batches with image and mask, both (B, channels, H, W)",
        "see the docstring of WebDatasetDataModule for what a batch is",
    )
    if painted is None:
        return
    exam.batches = [batch for batch, _ in painted]
    masks = max(len(batch["image"]) / seconds for batch, seconds in painted)
    exam.speeds = Speeds(math.inf if all(each.all() for each in own) else masks, _loader_speed(came))
    _measure_batches(exam, own, module)
    if isinstance(data, WebDatasetDataModule):
        _measure_stored(exam, data, timeout)


def _read(data: LightningDataModule, batches: int, timeout: float) -> list[tuple[Any, float]]:
    """Training batches as they come, and the seconds that each took."""

    def train_batches() -> Any:
        data.prepare_data()
        data.setup("fit")
        return islice(data.train_dataloader(), batches)

    try:
        return list(data_measures.items_in_time(train_batches, timeout))
    except Exception as error:
        data.on_exception(error)  # a worker that died: which sample it was decoding
        raise


def _loader_speed(came: Sequence[tuple[Any, float]]) -> float | None:
    """Images per second of the batches after the first, for which workers start and shards open."""
    seconds = sum(seconds for _, seconds in came[1:])
    return sum(len(batch["image"]) for batch, _ in came[1:]) / seconds if seconds else None


def _arrive(data: LightningDataModule, batch: Any, number: int, device: torch.device) -> tuple[Batch, float]:
    """A batch on its device with its masks, as the trainer hands it over; and the seconds of painting them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is found here anyway
        batch = data.on_before_batch_transfer(batch, 0)
        batch = data.transfer_batch_to_device(batch, device, 0)
        batch, seconds = model_measures.timed(lambda: data.on_after_batch_transfer(batch, 0), device)
    for name in ("image", "mask"):
        if batch[name].ndim != 4 or len(batch[name]) != len(batch["image"]):
            raise ValueError(f"batch[{name!r}]: expected (B, channels, H, W), got {tuple(batch[name].shape)}")
    keys = [f"batch {number}, sample {index}" for index in range(len(batch["image"]))]
    batch.setdefault("__key__", keys)
    return batch, seconds


def _measure_batches(exam: Examination, own: list[Tensor], module: InpaintDiffusion | None) -> None:
    seen = sorted({(batch["image"].shape[-2], batch["image"].shape[-1]) for batch in exam.batches})
    ratio, factor = 1, 1
    if module is not None:
        ratio = module.encoder.vae.ratio
        factor = math.lcm(model_measures.denoiser_factor(module.denoiser), module.layout.multiple)
    exam.sizes = Sizes(seen, ratio, factor)
    exam.pixels = data_measures.measure_pixels(exam.batches)
    exam.masks = data_measures.measure_masks(exam.batches, own)
    exam.pairs = measure_pairs(exam.batches, own)
    used = module is not None and not isinstance(module.conditioning, NoConditioning)
    exam.captions = data_measures.measure_captions(exam.batches, used)
    for batch in exam.batches:
        for kind, texts in batch.get("notes", {}).items():
            exam.notes.setdefault(kind, []).extend(texts)
    exam.findings += findings.check_range(exam.pixels) + findings.check_constant(exam.pixels)
    exam.findings += findings.check_inverted(exam.masks) + findings.check_painted(exam.masks)
    exam.findings += findings.check_empty(exam.masks) + findings.check_sizes(exam.sizes)
    exam.findings += findings.check_captions(exam.captions) + (findings.check_pairs(exam.pairs) if exam.pairs else [])
    exam.findings += findings.check_notes(exam.notes, exam.pixels.total)


def _measure_stored(exam: Examination, data: WebDatasetDataModule, timeout: float) -> None:
    """The undecoded samples behind the batches."""
    assert exam.speeds is not None

    def read() -> list[RawSample]:
        stream = SampleStream(data.train_set, data.train_order, batch_size=data.batch_size)
        samples = islice(stream, len(exam.batches) * data.batch_size)
        return [raw for raw, _ in data_measures.items_in_time(lambda: samples, timeout)]

    raws = exam.attempt(read, "data", "samples", "mend the source")
    if raws:
        decode = data.train_decoder if data.latents is None else data.train_decoder.for_cache(data.latents)
        exam.stored = data_measures.measure_stored(raws, decode)
        exam.contents = data_measures.measure_contents(data.train_set, raws, decode.masks.sources)
        exam.speeds = exam.speeds._replace(decode=exam.stored.per_second or None)
        blank = exam.pixels.constant if exam.pixels else ()
        exam.findings += findings.check_lossy(exam.stored) + findings.check_duplicates(exam.stored, blank)


def examine_model(
    exam: Examination,
    data: LightningDataModule,
    module: InpaintDiffusion,
    *,
    device: torch.device,
    precision: str,
    step: bool,
) -> None:
    """Encode what was read, and train a step."""
    assert exam.speeds is not None
    cached = getattr(data, "latents", None)
    advice = "encode the images anew with this VAE: inpaint shards cache-latents"
    if cached is not None:
        exam.attempt(lambda: check_clean(cached, module.encoder), "data.train_shards", "latents of this VAE", advice)
    advice = "the message says what it wants of a batch"
    encoded = exam.attempt(lambda: _encode(exam, module, cached), "model.encoder", "batches that it encodes", advice)
    if encoded is None:
        return
    exam.encoded = [each for each, _ in encoded]
    exam.speeds = exam.speeds._replace(encode=max(len(each.keys) / seconds for each, seconds in encoded))
    exam.latents = model_measures.measure_latents(exam.encoded, _dtype_of(module))
    exam.grid, exam.reduce = model_measures.measure_grid(exam.encoded, exam.sizes.ratio), module.layout.reduce
    exam.findings += findings.check_finite(exam.latents) + findings.check_latents(exam.latents)
    exam.findings += findings.check_grid(exam.grid, exam.reduce)
    if step and not exam.latents.lost:
        with autocast(precision, device):
            _train(exam, module)
    exam.faster = model_measures.faster(
        exam.speeds,
        exam.sizes,
        workers=exam.workers,
        cores=os.cpu_count() or 1,
        cached=cached is not None,
        gpu=module.encoder.kernel.is_cuda,
    )


def _dtype_of(module: InpaintDiffusion) -> str:
    return str(getattr(module.encoder.vae, "dtype", "")).removeprefix("torch.") or "its own dtype"


def _encode(exam: Examination, module: InpaintDiffusion, cached: LatentsTag | None) -> list[tuple[Encoded, float]]:
    done, found = 0, []
    left_out = "latents" if cached is not None and cached.target else ""  # of targets, which a cache does not hold
    for batch in exam.batches:
        if done < _ENCODED:
            part: Any = {name: _head(value, len(batch["image"]), _ENCODED - done) for name, value in batch.items()}
            part.pop(left_out, None)
            found.append(model_measures.encode(module, part))
            done += len(part["image"])
    if len(found) == 1:  # the first one warms up
        found.append((found[0][0], model_measures.encode(module, part)[1]))
        return [(found[0][0], min(seconds for _, seconds in found))]
    return found


def _head(value: Any, length: int, count: int) -> Any:
    """The first samples of one entry of a batch."""
    return value[:count] if isinstance(value, (Tensor, list)) and len(value) == length else value


def _train(exam: Examination, module: InpaintDiffusion) -> None:
    assert exam.speeds is not None
    batch = exam.batches[0]
    advice = "see the sizes of the images, and the memory; --no-step leaves this out"
    made = exam.attempt(lambda: model_measures.measure_step(module, batch), "model.denoiser", "a training step", advice)
    if made is not None:
        exam.findings += findings.check_loss(made[0])
        exam.speeds = exam.speeds._replace(step=len(batch["image"]) / made[1])
