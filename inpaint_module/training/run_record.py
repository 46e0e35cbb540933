"""What a run writes for people to look at: run.json and metrics.csv, which `compare_runs` reads, and pictures."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image, ImageDraw, ImageFont

from inpaint_module.files import atomic_write_picture, atomic_write_text, permissions_for, redacted, redacted_command
from inpaint_module.report.pages import to_pil
from inpaint_module.sampling import InpaintedImages
from inpaint_module.training.optimization import step_of
from inpaint_module.training.run_folder import (
    RECORD,
    Metrics,
    claim_on_all_ranks,
    config_path,
    metrics_path,
    or_aside,
    read_record,
    run_folder,
    write_json,
)
from inpaint_module.training.run_lock import release

_PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "webdataset", "pillow", "numpy")


class RunRecord(Callback):
    """Writes `run.json` and `metrics.csv` into the run folder, in which it lets no other process train.

    `run.json` holds the command, the times at which it was started, the seed, the versions and the device, the state of
    the data (its fingerprint, seed and plan) and the fingerprint of the VAE. `metrics.csv` holds every logged metric, a
    row each of step, name and value; a run that goes on from a checkpoint first forgets what came after it. Where
    Lightning's CSVLogger writes a file of that name, it is `run_metrics.csv`. Damaged ones are renamed, and new ones
    begin.
    """

    def __init__(self) -> None:
        self.completes = False  # that `validate` measures what a killed `fit` could not, in its place
        self._folder = Path()
        self._metrics: Metrics | None = None
        self._claims = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run folder, and take it.

        Raises:
            ValueError: on all ranks, if another process has it.
        """
        self._folder, self._metrics = run_folder(trainer), None
        if stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            claim_on_all_ranks(trainer, self._folder)
            self._claims = trainer.is_global_zero

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record, and take the metrics back to the step that the run starts at."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self._folder / RECORD
        self._begin(trainer)
        starts = self._starts(path)
        record = describe_run(trainer, pl_module)
        record["starts"] = [*starts, {"time": datetime.now(UTC).isoformat("T", "seconds"), "step": trainer.global_step}]
        write_json(path, record)

    def _starts(self, path: Path) -> list[dict[str, Any]]:
        """The starts before this one."""
        try:
            return read_record(path).get("starts", []) if path.exists() else []
        except ValueError as error:
            or_aside(path, error)
            return []

    def _begin(self, trainer: Trainer) -> Metrics:
        """The metrics, once for each start: a validation that runs again comes before `on_train_start`."""
        if self._metrics is None:
            path = metrics_path(self._folder, trainer.loggers)
            if trainer.global_step and not path.exists() and (self._folder / RECORD).exists():
                rank_zero_info(f"{path}: expected the metrics up to step {trainer.global_step}, got no file")
            self._metrics = Metrics(path, trainer.global_step)
        return self._metrics

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Write at the trainer's `log_every_n_steps`, where values are on the host anyhow."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0:
            self._write(trainer, "train/")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of the validation."""
        if not trainer.sanity_checking and (trainer.state.fn == "fit" or self.completes):
            self._write(trainer, "val/")

    def _write(self, trainer: Trainer, prefix: str) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            values = {name: value for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
            self._begin(trainer).add(trainer.global_step, values)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the run folder up."""
        if self._claims:
            release(self._folder)
        self._claims = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As after a fit."""
        self.teardown(trainer, pl_module, "fit")


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml` into the run folder when `fit` starts to train; the other verbs leave it alone.

    It names no checkpoint: every command takes the file, and `fit` goes on from the newest one. A config with a secret
    in it, such as the token of a shard's URL, is written as it is, and its owner alone may read the file. A file of
    that name that no run has written stays, and the run's is `run_config.yaml`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run folder."""
        self.folder = run_folder(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config, now that it is known to fit the checkpoint."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            config = self.config.clone()
            config["ckpt_path"] = None
            text = self.parser.dump(config, skip_none=False, skip_check=True)  # checked when it was parsed
            atomic_write_text(config_path(self.folder), text, permissions=permissions_for(text))


def describe_run(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """What a run is made of, in plain values."""
    encoder, data = getattr(pl_module, "encoder", None), getattr(trainer, "datamodule", None)
    return {
        "command": redacted_command(sys.argv),
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "device": device_name(trainer.strategy.root_device),
        "ranks": trainer.world_size,
        "data": redacted(data.state_dict()) if data is not None else {},
        "vae": {"vae_sha256": encoder.vae.fingerprint().hex()} if encoder is not None else {},
        "parameters": sum(value.numel() for value in pl_module.parameters() if value.requires_grad),
    }


def device_name(device: torch.device) -> str:
    """`NVIDIA H200` or `cpu x86_64`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"


def grid_image(rows: InpaintedImages) -> Image.Image:
    """One row per photo, one captioned column per field of `InpaintedImages`."""
    height, width = rows.image.shape[-2:]
    columns = [field.float().expand(-1, 3, -1, -1) for field in rows]
    tiles = torch.stack(columns, 1).permute(0, 3, 1, 4, 2).reshape(len(rows.image) * height, -1, 3)
    header = max(14, width // 8)
    sheet = Image.new("RGB", (tiles.shape[1], tiles.shape[0] + header), "white")
    sheet.paste(to_pil(tiles.movedim(-1, 0)), (0, header))
    font = ImageFont.load_default(size=header * 0.7)
    for column, name in enumerate(rows._fields):
        ImageDraw.Draw(sheet).text((column * width + 4, header * 0.1), name.replace("_", " "), "black", font)
    return sheet


def log_picture(trainer: Trainer, name: str, picture: Image.Image, step: int) -> None:
    """Show a picture in the loggers that show pictures: TensorBoard's, Weights & Biases', MLflow's, Comet's."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, f"{name}/step_{step:06d}.png")
        elif isinstance(logger, CometLogger):
            logger.experiment.log_image(picture, name, step=step)


class ImageGrid(Callback):
    """After each validation, a PNG of the first photos in `grids/` of the run folder, and the same in the loggers.

    When `fit` ends, says where the grid and the checkpoint are.

    Args:
        rows: number of photos.
    """

    def __init__(self, rows: int = 8):
        if rows < 1:
            raise ValueError(f"ImageGrid rows must be at least 1, got {rows}")
        self.rows = rows
        self._parts: list[InpaintedImages] = []
        self._path: Path | None = None
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run folder."""
        self._folder = run_folder(trainer) / "grids"

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep rows until there are enough."""
        if trainer.is_global_zero and sum(len(part.image) for part in self._parts) < self.rows:
            self._parts.append(InpaintedImages(**{name: field.cpu() for name, field in outputs.items()}))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sheet."""
        parts, self._parts = self._parts, []
        if not parts or trainer.sanity_checking:
            return
        sheet = grid_image(InpaintedImages(*(torch.cat(fields)[: self.rows] for fields in zip(*parts, strict=True))))
        step = step_of(trainer, pl_module)
        self._path = self._folder / f"step_{step:06d}.png"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_picture(self._path, sheet)
        log_picture(trainer, "val/grid", sheet, step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where things are."""
        saved = [getattr(trainer.checkpoint_callback, f"{which}_model_path", "") for which in ("last", "best")]
        checkpoint = next(filter(None, saved), "none was written")
        rank_zero_info(f"\npicture grid: {self._path or 'none: no validation ran'}\ncheckpoint:   {checkpoint}")


class PredictionWriter(Callback):
    """Writes each predicted composite as `<key>.png`, slashes of the key as folders.

    Args:
        folder: where to; null for `predictions` in the run folder.
    """

    def __init__(self, folder: str | None = None):
        self._wanted = folder
        self.folder = Path(folder or "predictions")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run folder."""
        self.folder = Path(self._wanted or run_folder(trainer) / "predictions")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Write the composites of a batch, but for the padding of the last one."""
        for name, position, picture in zip(
            batch["__key__"], batch["position"].tolist(), outputs.composite, strict=True
        ):
            if position >= 0:
                path = self.folder / f"{name}.png"
                if not path.resolve().is_relative_to(self.folder.resolve()):
                    raise ValueError(f"the key {name!r} leads out of the folder {self.folder}")
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write_picture(path, to_pil(picture))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the pictures are."""
        rank_zero_info(f"\npredictions: {self.folder}")
