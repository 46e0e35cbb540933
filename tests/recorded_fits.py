"""Data modules over small shards, and a training that notes what it was given."""

from pathlib import Path
from typing import Any

import torch
from data_fixtures import Halves, in_parts
from lightning import LightningModule
from quiet_trainer import quiet_trainer
from torch import Tensor

from datamodules.webdataset_datamodule import WebDatasetDataModule

COUNT = 13  # photos in the shards


class Recorder(LightningModule):
    """Trains one weight and notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trained: list[tuple[Any, ...]] = []
        self.validated: list[tuple[Any, ...]] = []

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        self.trained += rows(batch)
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self.validated += rows(batch)

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        self.validated += rows(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def rows(batch: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Position, key, caption, and sums over image and mask of each sample."""
    columns = [batch["position"].tolist(), batch["__key__"], batch["caption"]]
    sums = [batch[name].long().sum(dim=(1, 2, 3)).tolist() for name in ("image", "mask")]
    return list(zip(*columns, *sums, strict=True))


def module(shards: str | list[str], **options: Any) -> WebDatasetDataModule:
    """Batches of three, 16 pixels square."""
    settings = {"batch_size": 3, "image_size": 16, "mask_generator": Halves(), "seed": 4, "window": 2, **options}
    return WebDatasetDataModule(shards, shards, **in_parts(**settings))


def fit(
    data: WebDatasetDataModule, steps: int, folder: Path, checkpoint: Path | None = None, **options: Any
) -> list[tuple[Any, ...]]:
    """Train up to `steps` optimizer steps, save there, and return what was seen."""
    recorder = Recorder()
    loop = quiet_trainer(steps, default_root_dir=folder, limit_val_batches=0, **options)
    loop.fit(recorder, data, ckpt_path=checkpoint, weights_only=None if checkpoint is None else True)
    loop.save_checkpoint(folder / f"{steps}.ckpt")
    return recorder.trained
