"""A run goes on: which checkpoint it takes, and what Lightning leaves open between that and the step after it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info

from inpaint_module.files import redact, set_aside
from inpaint_module.training.changes import Change, adapt, changes, check_sharded, lines_of
from inpaint_module.training.checkpoints import (
    newest_valid_checkpoint,
    read_plain,
    read_seal,
)
from inpaint_module.training.checks import LIGHTNINGS_WORDS, check_same_checkpoint
from inpaint_module.training.lightning_private import (
    is_open,
    keep_name,
    keep_versions,
    last_version,
    mark_saved,
    names_versions,
    saves_by_time,
    saves_folders,
    use_version,
    validate_now,
    validation_is_due,
    versions_of,
)
from inpaint_module.training.run_folder import run_folder

SETTINGS, STARTED_FROM, LOG_VERSIONS = "run_settings", "started_from", "log_versions"  # of a checkpoint


class ExactResume(Callback):
    """Makes a resumed run repeat an uninterrupted one to the bit.

    - The global random numbers of torch, such as those of dropout, depend on (seed, step, batch of the accumulation
      window, rank) alone.
    - The checkpoint that a run resumed from is not written again inside the next accumulation window, nor under
      another name (`last-v1.ckpt`).
    - A validation that was due at the checkpoint's step runs again: a kill may have cut it off.
    - What would save inside an accumulation window is refused: the gradients so far are in no checkpoint.
    - Ranks that would go on from different checkpoints are refused, and checkpoints that no seal covers.
    - What has changed since the checkpoint is said, a line each, and takes effect; see `adapt`.

    Args:
        ckpt_path: what `trainer.fit` is given as such on this rank; ResumingCLI sets it.
        settings: of the run, see `settings_of`; None for unknown ones, which are not compared.
        started_from: the checkpoint that the user has named, if the run begins with it.
    """

    def __init__(
        self,
        ckpt_path: str | None = None,
        settings: Mapping[str, str] | None = None,
        started_from: str | None = None,
    ):
        self.ckpt_path, self.settings, self.started_from = ckpt_path, settings, started_from
        self._changed: list[Change] | None = None  # since the checkpoint; None for unknown
        self.began = self._goes_back = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check and prepare the checkpoint callbacks, and compare what the ranks go on from.

        Raises:
            ValueError: a callback may save inside an accumulation window, checkpoints would be folders, weights are
                both averaged and sharded, or ranks would go on from different checkpoints.
        """
        _check_sharding(trainer, stage)
        check_same_checkpoint(trainer, self.ckpt_path)
        self._goes_back = stage == "fit" and self.started_from is not None
        if stage == "fit" and self.ckpt_path is not None and self.ckpt_path not in LIGHTNINGS_WORDS:
            self._compare(read_plain(Path(self.ckpt_path)), pl_module)
            if not trainer.strategy.lightning_restore_optimizer:
                check_sharded(self._changed or [])
        for callback in model_checkpoints(trainer):
            keep_name(callback)
            if trainer.accumulate_grad_batches > 1 and (saves_by_time(callback) or callback.save_on_exception):
                raise ValueError(
                    "trainer.callbacks: expected ModelCheckpoint with every_n_train_steps, got train_time_interval or "
                    f"save_on_exception: with accumulate_grad_batches {trainer.accumulate_grad_batches} they save "
                    "inside an accumulation window, whose gradients would be lost"
                )

    def _compare(self, checkpoint: Mapping[str, Any], pl_module: LightningModule) -> None:
        """Say what has changed, before anything can be refused for it."""
        if SETTINGS in checkpoint and self.settings is not None:
            self._changed = changes(checkpoint[SETTINGS], self.settings)
            for line in lines_of(self._changed, pl_module):
                rank_zero_info(f"resume: changed since the checkpoint: {line}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Where the checkpoint was refused, name what has changed since then."""
        if self._changed and not self.began and isinstance(exception, Exception):
            exception.add_note(f"Changed since the checkpoint: {'; '.join(map(str, self._changed))}")

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on inside an accumulation window; adapt the checkpoint to settings that have changed.

        Raises:
            ValueError: the checkpoint was saved there, or its optimizer's state does not fit.
        """
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        if trainer.training and batches % trainer.accumulate_grad_batches:
            raise ValueError(
                f"trainer.accumulate_grad_batches: expected a divisor of the checkpoint's {batches} batches, got "
                f"{trainer.accumulate_grad_batches}: it was saved inside an accumulation window, or with another "
                "accumulate_grad_batches"
            )
        if trainer.training:
            self.started_from = self.started_from or checkpoint.get(STARTED_FROM)
            if self._changed is None:
                self._compare(checkpoint, pl_module)
            adapt(checkpoint, trainer, pl_module, self._changed or [])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what the next start compares."""
        checkpoint[LOG_VERSIONS] = versions_of(trainer.loggers)
        if self.settings is not None:
            checkpoint[SETTINGS] = dict(self.settings)
        if self.started_from is not None:
            checkpoint[STARTED_FROM] = self.started_from

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume, mark the checkpoint as saved, and run the validation that was due at it."""
        self.began = True
        if self._goes_back and trainer.is_global_zero:
            set_newer_aside(trainer, Path(self.started_from or ""))
        if trainer.fit_loop.restarting:
            for callback in model_checkpoints(trainer):
                mark_saved(callback, trainer.global_step)
            if validation_is_due(trainer):
                validate_now(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed torch's global generators."""
        micro_step = batch_idx % trainer.accumulate_grad_batches
        seed = os.environ.get("PL_GLOBAL_SEED", "0")
        text = f"{seed} {trainer.global_step} {micro_step} {trainer.global_rank}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1)


def checkpoint_folders(trainer: Trainer) -> list[Path]:
    """Where the trainer's ModelCheckpoints write all that a resume needs."""
    default = run_folder(trainer) / "checkpoints"
    return [Path(each.dirpath or default) for each in model_checkpoints(trainer) if not each.save_weights_only]


def set_newer_aside(trainer: Trainer, path: Path) -> None:
    """A run that goes back to `path` leaves later steps behind: rename them, so that no later start goes on there."""
    step = read_seal(path).step
    for folder in checkpoint_folders(trainer):
        for other in sorted(folder.rglob("*.ckpt")):
            with suppress(ValueError, OSError):  # damaged ones are named where one is chosen
                if other.resolve() != path.resolve() and read_seal(other).step > step:
                    kept = set_aside(other, "newer")
                    rank_zero_info(f"resume: {other} is of a later step than {path}: kept as {kept.name}")


def model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    """The callbacks that write checkpoints."""
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _check_sharding(trainer: Trainer, stage: str) -> None:
    """What does not go with sharded weights."""
    if stage != "fit" or not isinstance(trainer.strategy, ModelParallelStrategy):
        return
    if model_checkpoints(trainer) and saves_folders(trainer.strategy):
        raise ValueError(
            "trainer.strategy.init_args.save_distributed_checkpoint: expected false, got true, Lightning's default: it "
            "writes folders, which no sha256 covers and a kill can leave half written"
        )
    if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "trainer.callbacks: expected no weight averaging with ModelParallelStrategy, got one: Lightning keeps the "
            "average as a copy of the module, and sharded modules cannot be copied; use strategy ddp"
        )


def keep_run(trainer: Trainer, named: str | None) -> Path | None:
    """The checkpoint to go on from; the loggers are set to the folder and the run that it belongs to.

    Where the logger of the run folder takes a new version at each start, the run is that of the highest version that
    holds checkpoints.

    Args:
        trainer: whose loggers have made no folder yet.
        named: by the user as where to begin; a run that began with it goes on, any other is left alone.

    Raises:
        ValueError: there are checkpoints, but none verifies, and none is named.
    """
    last = None
    if names_versions(trainer):
        last = last_version(trainer, lambda folder: any((folder / "checkpoints").rglob("*.ckpt")))
        own = [Path(each.dirpath) for each in model_checkpoints(trainer) if each.dirpath and not each.save_weights_only]
        folders = own + ([last / "checkpoints"] if last else [])
    else:
        folders = checkpoint_folders(trainer)
    try:
        path = newest_valid_checkpoint(*folders)
    except ValueError:
        if named is None:
            raise
        return None
    if path is None:
        return None
    kept = read_plain(path) if named is not None or any(map(is_open, trainer.loggers)) else {}
    if named is not None and kept.get(STARTED_FROM) != str(Path(named).resolve()):
        return None
    if last is not None and path.is_relative_to(last):
        use_version(trainer, last)
        rank_zero_info(f"resume: the logger goes on in {last}; to start anew, give it another name or a new version")
    keep_versions(trainer.loggers, kept.get(LOG_VERSIONS, []))
    return path


def check_trained(path: Path | None, model: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Say whose weights are measured.

    Args:
        path: the checkpoint that was found; None for none.
        model: its config. A denoiser with a `path` is loaded, and may be measured before it is trained.
        folders: where checkpoints were looked for.

    Raises:
        ValueError: there is no checkpoint, and the weights are random.
    """
    loaded = loaded_from(model)
    where = ", ".join(map(str, folders)) or "no folder, as the config has no ModelCheckpoint"
    if path is not None:
        rank_zero_info(f"weights: those of {path}, at step {read_seal(path).step}; --ckpt_path FILE takes others")
    elif loaded:
        rank_zero_info(f"weights: those of {redact(loaded)} as they were loaded: no checkpoint in {where}")
    else:
        raise ValueError(
            f"ckpt_path: expected a checkpoint, as the config's model has random weights, got none in {where}: train "
            "it with `fit`, or give --ckpt_path FILE"
        )


def loaded_from(model: Mapping[str, Any]) -> str | None:
    """Where the denoiser of a model's config has its weights from; None for random ones."""
    base = (model.get("init_args") or {}).get("base")
    arguments = (base.get("init_args") or {}) if isinstance(base, Mapping) else {}
    denoiser = arguments.get("denoiser")
    if isinstance(denoiser, Mapping):
        arguments = denoiser.get("init_args") or {}
    places = [value for name, value in arguments.items() if "path" in name and value]  # also of from_pretrained
    return str(places[0]) if places else None


def resume_line(path: Path | None, max_steps: int) -> str:
    """What `fit` says first."""
    if path is None:
        return "resume: no checkpoint yet, starting from scratch"
    step = read_seal(path).step
    if 0 <= max_steps <= step:
        return f"resume: finished: {path} is at step {step} of {max_steps}; raise trainer.max_steps to go on"
    return f"resume: going on from {path} at step {step}; to start anew, delete or rename its folder"
