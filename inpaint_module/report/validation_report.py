"""ValidationReport: the same photos under the same masks, scored, pictured, and on a page in the run folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from inpaint_module.base_models.families import decode_difference, pipeline_class
from inpaint_module.masks import preset
from inpaint_module.metrics.perceptual import LPIPS
from inpaint_module.metrics.scores import ScoredPhoto, ScoredPreset, flat_scores, score_fills
from inpaint_module.randomness import Stream, key
from inpaint_module.report.report_files import pictures_of, sheet_of, write_report
from inpaint_module.sampling import InpaintedImages
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.optimization import step_of
from inpaint_module.training.run_folder import run_folder
from inpaint_module.training.run_record import log_picture


class ValidationReport(Callback):
    """Inpaints a few validation photos under masks of each preset when `fit` or `validate` ends, and writes about it.

    In the run folder: `report.html`, a page; `report.json`, the numbers; `report/<preset>.png`, the pictures. In
    the loggers: `report/<preset>/psnr_inside` and so on, and the pictures. The photos are the first of the validation
    data (with several ranks, of rank 0's share); masks are functions of (seed, number of the photo), noise of (seed,
    position): a run that was killed and resumed reports the same numbers. The weights are those that validation uses,
    with `EMA` the average.

    It costs photos x presets fills, by default 12, each of one photo alone: `sampling_steps` denoiser calls (twice with
    guidance) and two encodings and decodings. Rank 0 does it while the others wait. Where a strategy shards the weights
    there is no report, and a warning says so.

    Args:
        presets: names of mask recipes; see `inpaint_module.masks.preset`.
        photos: number of photos.
        every_validation: also report after each validation of `fit`; the files are then of the newest.
        lpips: also scores the composites by it; null for no such score.
        seed: of the masks.

    Raises:
        ValueError: an unknown preset, one twice or none, or no photos.
    """

    def __init__(
        self,
        presets: Sequence[str] = ("lama-thin", "lama-thick", "outpaint"),
        *,
        photos: int = 4,
        every_validation: bool = False,
        lpips: LPIPS | None = None,
        seed: int = 0,
    ):
        if not presets or len(set(presets)) < len(presets):
            raise ValueError(f"ValidationReport presets must be different names, at least one, got {list(presets)}")
        if photos < 1:
            raise ValueError(f"ValidationReport photos must be at least 1, got {photos}")
        self.presets = {name: preset(name) for name in presets}
        self.photos, self.every_validation = photos, every_validation
        self.lpips, self.seed = lpips, seed
        self._folder = Path()
        self._found: list[dict[str, Any]] = []
        self._reported: int | None = None  # the step of the newest report

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run folder: on all ranks, which share it by a broadcast that rank 0 alone would wait for."""
        self._folder = run_folder(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the photos anew."""
        self._found = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep photos until there are enough, and report if it is time: here the averaged weights are in place."""
        missing = self.photos - len(self._found)
        if trainer.sanity_checking or not trainer.is_global_zero or dataloader_idx or not missing:
            return
        self._found += photos_of(batch)[:missing]
        every = self.every_validation or trainer.state.fn == TrainerFn.VALIDATING
        if every and (len(self._found) == self.photos or _is_last_batch(trainer)):
            self._report(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it if there is nothing to report on."""
        if not self._found:
            rank_zero_warn(
                "ValidationReport: no validation has run since this start, so there is no report; the command "
                "`validate` with the last checkpoint writes it"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, now that an average is what the weights are."""
        if trainer.is_global_zero and self._found and self._reported != trainer.global_step:
            self._report(trainer, pl_module)

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = step_of(trainer, pl_module)
        self._reported = trainer.global_step
        if not self._found or not isinstance(pl_module, InpaintDiffusion) or is_sharded(trainer, pl_module):
            rank_zero_warn(
                "ValidationReport: no report; it expects validation photos and an InpaintDiffusion whose weights are "
                f"whole on every rank, got {len(self._found)} photos and {type(pl_module).__name__} under "
                f"{type(trainer.strategy).__name__}"
            )
            return
        with as_in_validation(trainer, pl_module, self.seed):
            scored = [self._scored(name, trainer, pl_module) for name in self.presets]
        if self.lpips is not None:
            self.lpips.to(torch.device("cpu"))
        write_report(self._folder, step, scored, decode_notes(pl_module))
        for part in scored:
            _log(trainer, part, step)
        rank_zero_info(f"\nreport:       {self._folder / 'report.html'}")

    def _scored(self, name: str, trainer: Trainer, pl_module: InpaintDiffusion) -> ScoredPreset:
        photos = []
        for number, photo in enumerate(self._found):
            keys = key(self.seed, torch.tensor([number]), Stream.MASK)
            batch = photo | {"mask": self.presets[name](keys, *photo["image"].shape[-2:])}
            batch = move_data_to_device(batch, pl_module.device)
            with trainer.precision_plugin.val_step_context():
                result = pl_module.inpaint(batch)
                round_trip = pl_module.encoder.decode(cast(Tensor, pl_module.encode(batch).target))
            title = f"{batch['__key__'][0]} under {name}"
            round_trip = finite(round_trip, f"{title}, the autoencoder alone")
            result = InpaintedImages(*(finite(field, title) for field in result))
            scores = score_fills(result, round_trip, self.lpips)
            caption = batch.get("caption", [""])[0]
            photos.append(
                ScoredPhoto(batch["__key__"][0], int(batch["position"]), caption, scores, pictures_of(result))
            )
        return ScoredPreset(name, photos)


def photos_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """A batch as batches of one on the CPU, without masks and without the padding of the last one.

    Of pairs the targets are the photos: under masks that are painted anywhere these alone tell what belongs there.
    """
    batch = {**batch, "image": batch.get("target", batch["image"])}
    size = len(batch["image"])
    fields = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in batch.items()}
    fields = {name: v for name, v in fields.items() if isinstance(v, Tensor | list) and len(v) == size}
    return [
        {name: value[number : number + 1] for name, value in fields.items() if name not in ("mask", "target")}
        for number, position in enumerate(batch["position"].tolist())
        if position >= 0
    ]


def finite(image: Tensor, title: str) -> Tensor:
    """A picture (B, C, H, W) with zeros for what is not finite, said once per call, lest a score be left out unseen."""
    lost = int((~image.isfinite()).sum())
    if lost:
        rank_zero_warn(f"ValidationReport: {title}: {lost:,} values are not finite and count as black")
    return image.nan_to_num(0, 0, 0) if lost else image


def _log(trainer: Trainer, part: ScoredPreset, step: int) -> None:
    scores = {f"report/{part.name}/{name}": value for name, value in flat_scores(part.mean()).items()}
    for logger in trainer.loggers:
        logger.log_metrics(scores, step)
    log_picture(trainer, f"report/{part.name}", sheet_of(part), step)


def decode_notes(module: InpaintDiffusion) -> list[str]:
    """Which decode the pictures show, where the pipeline that serves the model has another."""
    try:
        name = module.base.pipeline
    except ValueError:  # no pipeline feeds its denoiser so
        name = None
    if name is None:
        return []
    differs = decode_difference(module.encoder, pipeline_class(name))
    return [f"These pictures are decoded as the VAE's config says. {differs}."] if differs else []


def _is_last_batch(trainer: Trainer) -> bool:
    alone = trainer.state.fn == TrainerFn.VALIDATING
    loop = trainer.validate_loop if alone else trainer.fit_loop.epoch_loop.val_loop
    return loop.batch_progress.is_last_batch


def is_sharded(trainer: Trainer, module: LightningModule) -> bool:
    """Whether a rank holds parts of the weights alone, so that one rank cannot call the denoiser."""
    return module.device_mesh is not None or isinstance(trainer.strategy, FSDPStrategy)


@contextmanager
def as_in_validation(trainer: Trainer, module: LightningModule, seed: int) -> Iterator[None]:
    """In eval mode, on the training device, which Lightning has left when `fit` ends, and without a trace."""
    training, device = {part: part.training for part in module.modules()}, module.device
    moved = device != trainer.strategy.root_device
    module.eval()
    if moved:
        module.to(trainer.strategy.root_device)
    try:
        with torch.no_grad(), isolate_rng():
            torch.manual_seed(seed)  # for schedulers that draw noise of their own
            yield
    finally:
        if moved:
            module.to(device)
        for part, was in training.items():
            part.training = was
