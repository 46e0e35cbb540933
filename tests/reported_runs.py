"""Tiny runs that write a validation report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from quiet_trainer import quiet_trainer
from tiny_models import tiny_denoiser, tiny_module

from datamodules import WebDatasetDataModule
from inpaint_module.masks import Boxes
from inpaint_module.report.validation_report import ValidationReport
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

PRESETS = ("lama-thick", "outpaint")
SIZE = 48


def report(**options: Any) -> ValidationReport:
    return ValidationReport(**{"presets": PRESETS, "photos": 3} | options)


def model(dropout: float = 0.1) -> InpaintDiffusion:
    torch.manual_seed(0)
    return tiny_module(denoiser=tiny_denoiser(dropout=dropout))


def data() -> WebDatasetDataModule:
    """Embedded photos, two of a batch."""
    boxes = Boxes(resolution=SIZE)
    return WebDatasetDataModule("embedded:val", "embedded:val", batch_size=2, image_size=SIZE, mask_generator=boxes)


def trainer_of(folder: Path, steps: int, *callbacks: Callback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "limit_val_batches": 2,
        "val_check_interval": 2,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 1,
        "log_every_n_steps": 1,
    }
    return quiet_trainer(steps, default_root_dir=folder, callbacks=list(callbacks), **settings | options)


def fit(
    folder: Path,
    steps: int,
    *callbacks: Callback,
    ckpt_path: Path | None = None,
    dropout: float = 0.1,
    **options: Any,
) -> InpaintDiffusion:
    trained = model(dropout)
    torch.manual_seed(1)
    trainer_of(folder, steps, *callbacks, **options).fit(trained, data(), ckpt_path=ckpt_path, weights_only=True)
    return trained


def numbers(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return result
