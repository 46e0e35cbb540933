"""Loggers that name a new folder or run at each start: a second start keeps the name of the first.

The loggers' private names of it are set here alone; tested with Lightning 2.6.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment

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
