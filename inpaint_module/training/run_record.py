"""RunRecord: what a run was made of and what came of it, in its folder, for people and for `compare_runs`."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from inpaint_module.files import atomic_write_text
from inpaint_module.redaction import permissions_for, redacted, redacted_command
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
