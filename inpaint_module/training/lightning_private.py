"""What of Lightning this project leans on that is no promise of its own: here alone, but for what EMA inherits.

Tested with Lightning 2.6; tests/test_lightning_private.py fails where a name has changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy

TESTED = "2.6"  # versions of Lightning that begin so
Version = str | int | None


def versions_of(loggers: Sequence[Logger]) -> list[Version]:
    """What a checkpoint keeps: the version or run id of each logger; None for one that has none."""
    known = (TensorBoardLogger, CSVLogger, WandbLogger, MLFlowLogger)
    return [logger.version if isinstance(logger, known) else None for logger in loggers]


def keep_versions(loggers: Sequence[Logger], versions: Sequence[Version]) -> None:
    """Have loggers without a fixed version go on in those of an earlier start; others stay as they are."""
    for logger, version in zip(loggers, versions, strict=False):
        if version is not None and is_open(logger):
            _set(logger, version)


def is_open(logger: Logger) -> bool:
    """Whether a logger takes a new version or run id at each start."""
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        job = SLURMEnvironment.job_id()  # which Lightning's default logger takes for its version
        return logger._version is None or (job is not None and logger._version == job)
    if isinstance(logger, WandbLogger):
        return logger._id is None and logger._experiment is None
    return isinstance(logger, MLFlowLogger) and logger._run_id is None


def names_versions(trainer: Trainer) -> bool:
    """Whether the logger that names the run folder takes a new version at each start."""
    files = _of_files(trainer)
    return bool(files) and is_open(files[0])


def last_version(trainer: Trainer, holds: Callable[[Path], bool]) -> Path | None:
    """The version folder with the highest number for which `holds` is true; None if there is none.

    On SLURM, that of this job goes before.
    """
    logger = _of_files(trainer)[0]
    if logger._version is not None and holds(Path(logger.log_dir)):
        return Path(logger.log_dir)
    folders = [path for path in Path(logger.root_dir).glob("version_*") if re.fullmatch(r"version_\d+", path.name)]
    return next((path for path in sorted(folders, key=_number, reverse=True) if holds(path)), None)


def use_version(trainer: Trainer, folder: Path) -> None:
    """Have the logger that names the run folder go on in a version folder."""
    _set(_of_files(trainer)[0], _number(folder))


def _of_files(trainer: Trainer) -> list[TensorBoardLogger | CSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("version_"))


def _set(logger: Logger, version: str | int) -> None:
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        logger._version = version
    elif isinstance(logger, WandbLogger):
        logger._wandb_init["id"] = logger._id = str(version)
    elif isinstance(logger, MLFlowLogger):
        with suppress(Exception):  # of any kind, where the run is not in the database any more: a new one begins
            logger._mlflow_client.get_run(str(version))
            logger._run_id = str(version)


def write_csv_into(logger: CSVLogger, folder: Path) -> None:
    """Have a CSVLogger, which has written nothing yet, write into another folder than its own."""
    logger._experiment = ExperimentWriter(str(folder))


def keep_name(callback: ModelCheckpoint) -> None:
    """Have a ModelCheckpoint replace a file of the name that it wants, instead of adding `-v1`."""
    callback._enable_version_counter = False


def saves_by_time(callback: ModelCheckpoint) -> bool:
    """Whether a ModelCheckpoint saves by `train_time_interval`."""
    return callback._train_time_interval is not None


def mark_saved(callback: ModelCheckpoint, step: int) -> None:
    """Have a ModelCheckpoint take a step for saved."""
    callback._last_global_step_saved = step


def saves_folders(strategy: ModelParallelStrategy) -> bool:
    """Whether its checkpoints are folders."""
    return strategy._save_distributed_checkpoint


def validation_is_due(trainer: Trainer) -> bool:
    """Whether the trainer validates after the batch that it has just done, or whose checkpoint it has just loaded."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop.batch_idx >= 0 and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def validate_now(trainer: Trainer) -> None:
    """Validate as Lightning's training loop does it."""
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop.val_loop
    first_iteration = connector._first_loop_iter
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first_iteration
    loop._has_run = False  # else, after a checkpoint of an epoch's end, the epochs to come end at once, for ever
