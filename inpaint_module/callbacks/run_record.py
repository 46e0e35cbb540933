"""RunRecord: what a run was made of and what came of it, in its folder, for people and for `compare_runs`."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from inpaint_module.callbacks.image_grid import run_folder
from inpaint_module.files import atomic_write_text

RECORD = "run.json"
METRICS = "metrics.csv"
_PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "webdataset", "pillow", "numpy")


class MetricRow(NamedTuple):
    """One value of one metric after so many optimizer steps."""

    step: int
    metric: str
    value: float


def read_metrics(path: Path) -> list[MetricRow]:
    """The rows of a `metrics.csv`, without a last line that a kill cut short.

    Raises:
        ValueError: naming the file and line, if it is not one.
    """
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    try:
        return [MetricRow(int(row["step"]), row["metric"], float(row["value"])) for row in csv.DictReader(whole)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the columns step, metric, value: {error!r}") from error


def write_metrics(path: Path, rows: Iterable[MetricRow]) -> None:
    """Write a new `metrics.csv` in place of the old one."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([MetricRow._fields, *rows])
    atomic_write_text(path, text.getvalue())


class RunRecord(Callback):
    """Writes `run.json` and `metrics.csv` into the run folder.

    `run.json` holds the command, the times at which it was started, the seed, the versions and the device, the state of
    the data (its fingerprint, seed and plan) and the fingerprint of the VAE. `metrics.csv` holds every logged metric, a
    row each of step, name and value; a run that goes on from a checkpoint first forgets what came after it.
    """

    def __init__(self) -> None:
        self._written: dict[str, int] = {}  # metric -> the step of its last row
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run folder."""
        self._folder = run_folder(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record, and take the metrics back to the step that the run starts at."""
        if not trainer.is_global_zero:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / RECORD
        starts = json.loads(path.read_text())["starts"] if path.exists() else []
        record = describe_run(trainer, pl_module)
        record["starts"] = [*starts, {"time": datetime.now(UTC).isoformat("T", "seconds"), "step": trainer.global_step}]
        atomic_write_text(path, json.dumps(record, indent=1) + "\n")
        metrics = self._folder / METRICS
        kept = read_metrics(metrics) if metrics.exists() else []
        kept = [row for row in kept if row.step <= trainer.global_step]
        write_metrics(metrics, kept)
        self._written = {row.metric: row.step for row in kept}

    def _write(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Append what has no row for this step yet."""
        step = trainer.global_step
        new = [MetricRow(step, name, float(v)) for name, v in metrics.items() if self._written.get(name) != step]
        self._written |= {row.metric: row.step for row in new}
        with (self._folder / METRICS).open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(new)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Write at the trainer's `log_every_n_steps`, where values are on the host anyhow."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.is_global_zero and every and trainer.global_step % every == 0:
            self._write(trainer, {name: v for name, v in trainer.callback_metrics.items() if name.startswith("train/")})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the metrics of the validation."""
        if trainer.is_global_zero and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._write(trainer, {name: v for name, v in trainer.callback_metrics.items() if name.startswith("val/")})


def describe_run(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """What a run is made of, in plain values."""
    encoder, data = getattr(pl_module, "encoder", None), getattr(trainer, "datamodule", None)
    return {
        "command": sys.argv,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "device": device_name(trainer.strategy.root_device),
        "ranks": trainer.world_size,
        "data": data.state_dict() if data is not None else {},
        "vae": {"vae_sha256": encoder.vae.fingerprint().hex()} if encoder is not None else {},
        "parameters": sum(value.numel() for value in pl_module.parameters() if value.requires_grad),
    }


def device_name(device: torch.device) -> str:
    """`NVIDIA H200` or `cpu x86_64`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}"
