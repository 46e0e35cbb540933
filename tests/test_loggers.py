"""Every logger of Lightning goes with every callback of ours, alone and together, and through a second start."""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from quiet_trainer import QUIET, quiet_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import tiny_module

from datamodules import WebDatasetDataModule
from datamodules.stream_datamodule import DataCounters
from inpaint_module.masks import Boxes
from inpaint_module.report import ValidationReport
from inpaint_module.training import EMA, ImageGrid, NonFiniteGuard, PredictionWriter, RunRecord, Throughput
from inpaint_module.training.checks import Leftovers
from inpaint_module.training.resume import ExactResume
from inpaint_module.training.run_folder import keep_csv_logs, metrics_path, read_metrics, read_record, run_folder
from inpaint_module.training.run_record import log_picture

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Checkpoint directory.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:(mlflow|wandb)"),
]
MAKERS: dict[str, Callable[[Path], list[Logger]]] = {
    "none": lambda folder: [],
    "csv": lambda folder: [CSVLogger(folder, "run", version="")],
    "tensorboard": lambda folder: [TensorBoardLogger(folder, "run", version="")],
    "mlflow": lambda folder: [MLFlowLogger(save_dir=str(folder / "mlruns"))],
    "wandb": lambda folder: [WandbLogger(save_dir=folder, offline=True)],
    "comet": lambda folder: [CometLogger(offline_directory=str(folder / "comet"), project="run")],
}
MAKERS["all"] = lambda folder: [
    logger for name in ("wandb", "mlflow", "csv", "tensorboard") for logger in MAKERS[name](folder)
]
FOLDERS = {"none": "root", "mlflow": "root", "wandb": ".", "comet": "comet"}  # the others' is "run"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a network nor a word."""
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
    # not CometLogger's `online: false`, with which Lightning 2.6 disables the experiment, so that nothing is written
    settings |= {"COMET_START_ONLINE": "0", "COMET_LOGGING_CONSOLE": "CRITICAL"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def fit(folder: Path, loggers: list[Logger], steps: int, ckpt_path: Path | None = None) -> Path:
    """Train with all callbacks; returns the run folder."""
    callbacks = [Leftovers(), ExactResume(), EMA(0.5), ImageGrid(2), PredictionWriter(), RunRecord(), Throughput()]
    callbacks += [ValidationReport(["sd"], photos=1), DataCounters(), NonFiniteGuard()]
    callbacks += [LearningRateMonitor()] * bool(loggers)
    saves = ModelCheckpoint(dirpath=folder / "c", every_n_train_steps=1, save_top_k=-1)
    trainer = quiet_trainer(
        steps,
        logger=loggers,
        callbacks=[*callbacks, saves],
        default_root_dir=folder / "root",
        val_check_interval=2,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    boxes = Boxes(resolution=32)
    data = WebDatasetDataModule("embedded:val", "embedded:val", batch_size=2, image_size=32, mask_generator=boxes)
    keep_csv_logs(trainer, "fit")
    trainer.fit(tiny_module(), data, ckpt_path=ckpt_path, weights_only=True)
    if wandb := sys.modules.get("wandb"):
        wandb.finish()  # as at the end of a process
    for logger in loggers:
        if isinstance(logger, CometLogger):
            logger.experiment.end()
    return run_folder(trainer)


LATER = {"mlflow", "wandb", "comet", "tensorboard"}  # alone; "all" has most, and the quickstart's runs the last
COMETS_SOCKET = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # that Comet leaves open


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in LATER) + [COMETS_SOCKET] * (name == "comet"))
        for name in MAKERS
    ],
)
def test_a_logger_goes_with_all_callbacks_through_two_starts(name: str, tmp_path: Path) -> None:
    fit(tmp_path, MAKERS[name](tmp_path), 2)
    loggers = MAKERS[name](tmp_path)
    folder = fit(tmp_path, loggers, 3, tmp_path / "c" / "epoch=0-step=2.ckpt")
    assert folder == tmp_path / FOLDERS.get(name, "run")
    rows = read_metrics(metrics_path(folder, loggers))
    assert [row.step for row in rows if row.metric == "train/loss"] == [1, 2, 3]
    assert [row.step for row in rows if row.metric == "val/psnr_inside"] == [2]
    assert [start["step"] for start in read_record(folder / "run.json")["starts"]] == [0, 2]
    assert {path.name for path in (folder / "grids").iterdir()} == {"step_000002.png"}
    assert (folder / "report.html").exists()
    if name in ("csv", "all"):
        seen = [row for path in ("metrics.csv.earlier", "metrics.csv") for row in table(tmp_path / "run" / path)]
        assert {int(row["step"]) for row in seen} >= {0, 1, 2}
        assert any(row.get("report/sd/psnr_inside") for row in seen)
        assert any(row.get("data/samples") for row in seen)


def table(path: Path) -> list[dict[str, str]]:
    """What a CSVLogger has written."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_reach_every_logger_that_shows_them(tmp_path: Path) -> None:
    """The grid, the samples and the report's sheets go this way; Weights & Biases: the next test."""
    loggers = [logger for name in ("mlflow", "csv", "tensorboard") for logger in MAKERS[name](tmp_path)]
    for step in (0, 15):
        log_picture(cast("Trainer", SimpleNamespace(loggers=loggers)), "report/sd", picture(step), step)
    kept = sorted((tmp_path / "mlruns").rglob("*.png"))
    assert [path.name for path in kept] == ["step_000000.png", "step_000015.png"]
    assert all("artifacts/report/sd" in path.as_posix() for path in kept)
    assert Image.open(kept[1]).getpixel((0, 0)) == (15, 0, 0)
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload().Images("report/sd")
    assert [each.step for each in events] == [0, 15]
    assert Image.open(io.BytesIO(events[1].encoded_image_string)).getpixel((0, 0)) == (15, 0, 0)


@pytest.mark.slow
def test_pictures_reach_weights_and_biases(tmp_path: Path) -> None:
    loggers = MAKERS["wandb"](tmp_path)
    log_picture(cast("Trainer", SimpleNamespace(loggers=loggers)), "samples", picture(15), 15)
    sys.modules["wandb"].finish()
    (kept,) = tmp_path.rglob("media/images/samples*.png")
    assert Image.open(kept).getpixel((0, 0)) == (15, 0, 0)


@COMETS_SOCKET
@pytest.mark.slow
def test_pictures_reach_comet(tmp_path: Path) -> None:
    loggers = MAKERS["comet"](tmp_path)
    log_picture(cast("Trainer", SimpleNamespace(loggers=loggers)), "samples", picture(15), 15)
    cast("CometLogger", loggers[0]).experiment.end()  # as at the end of a process
    (kept,) = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(kept) as archive:
        files = [archive.read(name) for name in archive.namelist()]
        pictures = [Image.open(io.BytesIO(file)) for file in files if file.startswith(b"\x89PNG")]
        said = archive.read("messages.json").decode()
    assert [each.getpixel((0, 0)) for each in pictures] == [(15, 0, 0)]
    assert "samples" in said


def picture(red: int) -> Image.Image:
    return Image.new("RGB", (20, 10), (red, 0, 0))
