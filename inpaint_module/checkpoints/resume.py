"""ExactResume: what Lightning leaves open between a checkpoint and the step after it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info

from inpaint_module.checkpoints.checkpoint_io import read_plain, read_seal
from inpaint_module.checkpoints.going_on import adapt, check_sharded, lines_of
from inpaint_module.checkpoints.rank_checks import LIGHTNINGS_WORDS, check_same_checkpoint
from inpaint_module.checkpoints.settings import Change, changes
from inpaint_module.files import set_aside
from inpaint_module.run_folder import run_folder
from inpaint_module.run_versions import versions_of

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
            callback._enable_version_counter = False
            if trainer.accumulate_grad_batches > 1 and (callback._train_time_interval or callback.save_on_exception):
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
                callback._last_global_step_saved = trainer.global_step
            if validation_is_due(trainer):
                _validate(trainer)

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
    if model_checkpoints(trainer) and trainer.strategy._save_distributed_checkpoint:
        raise ValueError(
            "trainer.strategy.init_args.save_distributed_checkpoint: expected false, got true, Lightning's default: it "
            "writes folders, which no sha256 covers and a kill can leave half written"
        )
    if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ValueError(
            "trainer.callbacks: expected no weight averaging with ModelParallelStrategy, got one: Lightning keeps the "
            "average as a copy of the module, and sharded modules cannot be copied; use strategy ddp"
        )


def validation_is_due(trainer: Trainer) -> bool:
    """Whether the trainer validates after the batch that it has just done, or whose checkpoint it has just loaded."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop.batch_idx >= 0 and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _validate(trainer: Trainer) -> None:
    """As Lightning's training loop does it."""
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop.val_loop
    first_iteration = connector._first_loop_iter
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first_iteration
    loop._has_run = False  # else, after a checkpoint of an epoch's end, the epochs to come end at once, for ever
