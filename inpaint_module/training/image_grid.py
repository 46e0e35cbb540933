"""What a run writes for people to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image, ImageDraw, ImageFont

from inpaint_module.files import atomic_write_picture
from inpaint_module.report.pictures import to_pil
from inpaint_module.sampling import InpaintedImages
from inpaint_module.training.optimization import step_of
from inpaint_module.training.run_folder import run_folder


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
