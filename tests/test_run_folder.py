"""A run's folder: where it is, and what is read from it, checked."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from inpaint_module.training import run_folder as module
from inpaint_module.training.run_folder import (
    MetricRow,
    Metrics,
    config_path,
    keep_csv_logs,
    metrics_path,
    read_metrics,
    read_record,
    run_folder,
    write_metrics,
)
from inpaint_module.training.run_lock import Holder

ROWS = [MetricRow(1, "train/loss", 0.5), MetricRow(2, "train/loss", 0.25), MetricRow(2, "val/x", 1.0)]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(module, "rank_zero_info", lines.append)
    return lines


def trainer(*loggers: Logger, verb: TrainerFn | None = None) -> Any:
    return SimpleNamespace(
        loggers=list(loggers),
        default_root_dir="root",
        state=SimpleNamespace(fn=verb),
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )


class Remote(Logger):
    """One without a folder."""

    name = version = None

    def log_metrics(self, *args: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def test_the_run_folder_is_that_of_the_first_logger_with_one(tmp_path: Path) -> None:
    board, table = TensorBoardLogger(tmp_path, "a", version=""), CSVLogger(tmp_path, "b", version=3)
    cloud = WandbLogger(save_dir=tmp_path / "w")
    assert run_folder(trainer()) == Path("root")
    assert run_folder(trainer(Remote())) == Path("root")
    assert run_folder(trainer(Remote(), cloud)) == tmp_path / "w"
    assert run_folder(trainer(cloud, table, board)) == tmp_path / "b" / "version_3"
    assert run_folder(trainer(board, table)) == tmp_path / "a"


def test_other_verbs_keep_away_from_a_folder_in_which_a_process_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (None, Holder(1, "host", "now", "train")):
        monkeypatch.setattr(module, "holder", lambda folder, found=found: found)
        assert run_folder(trainer(verb=TrainerFn.FITTING)) == Path("root")
        assert run_folder(trainer(verb=TrainerFn.VALIDATING)) == (Path("root/validate") if found else Path("root"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON, got"),
        (b'{"starts": [', "expected JSON, got"),
        (b"\0" * 100, "expected JSON, got"),
        (b"\xff\xfe", "expected JSON, got"),
        (b"[" * 100_000, "expected JSON, got"),
        (b"[]", "expected a JSON object, got list"),
        (b'{"starts": 5}', "starts: expected list, got 5"),
        (b'{"starts": [1]}', "starts: expected objects of time and step, got 1"),
        (b'{"starts": [{"time": "now", "step": "3"}]}', "starts: expected objects of time and step"),
        (b'{"starts": [{"step": 3}]}', "starts: expected objects of time and step"),
        (b'{"device": null}', "device: expected str, got None"),
        (b'{"parameters": "many"}', "parameters: expected int, got 'many'"),
    ],
)
def test_a_record_is_checked(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json: ") as error:
        read_record(path)
    assert message in str(error.value)
    path.write_text(json.dumps({"starts": [{"time": "now", "step": 3}], "more": 1}))
    assert read_record(path)["more"] == 1


@pytest.mark.parametrize(
    ("damage", "message", "kept"),
    [
        (lambda text: "", "expected the columns step, metric, value, got b''", 0),
        (lambda text: "\0" * len(text), "expected the columns", 0),
        (lambda text: text[:9], "expected the columns", 0),
        (lambda text: "epoch,loss\n1,2\n", "expected the columns", 0),
        (lambda text: text.partition("\n")[2], "expected the columns", 0),
        (
            lambda text: text.replace("0.25", "zero"),
            "line 3: expected step, metric, value, got b'2,train/loss,zero'",
            2,
        ),
        (lambda text: text.replace("2,train", '2,"train'), "line 3: expected step", 2),
        (lambda text: text.replace("train/loss,0.5\n", ""), "line 2: expected step", 1),
        (lambda text: text.replace("train/loss,0.5", "\0,0.5"), "line 2: expected step", 2),
    ],
)
def test_damaged_metrics_are_named_and_kept_aside(
    damage: Any, message: str, kept: int, tmp_path: Path, told: list[str]
) -> None:
    path = tmp_path / "metrics.csv"
    write_metrics(path, ROWS)
    damaged = damage(path.read_text())
    path.write_text(damaged)
    with pytest.raises(ValueError, match=r"metrics\.csv") as error:
        read_metrics(path)
    assert message in str(error.value)
    for name in ("metrics.csv.damaged", "metrics.csv.damaged-2"):
        path.write_text(damaged)
        Metrics(path, 2)
        assert (tmp_path / name).read_text() == damaged
        assert message in told[-1]
        assert f"kept as {name}" in told[-1]
    assert len(told) == 2
    assert len(read_metrics(path)) == kept  # what could be read


def test_a_folder_in_the_place_of_metrics_is_kept_aside(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv" / "mine").mkdir(parents=True)
    Metrics(tmp_path / "metrics.csv", 2)
    assert (tmp_path / "metrics.csv.damaged" / "mine").is_dir()


def test_a_last_line_that_was_cut_is_no_damage(tmp_path: Path, told: list[str]) -> None:
    path = tmp_path / "metrics.csv"
    write_metrics(path, ROWS)
    path.write_text(path.read_text()[:-5])
    assert read_metrics(path) == ROWS[:2]
    Metrics(path, 2).add(2, {"train/loss": 0.25, "val/x": 1.0})
    assert read_metrics(path) == ROWS
    assert not told


def test_metrics_go_back_to_the_step_and_say_each_thing_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_metrics(path, [*ROWS, ROWS[1], MetricRow(3, "train/loss", 9.0)])
    metrics = Metrics(path, 2)
    assert read_metrics(path) == ROWS
    metrics.add(2, {"train/loss": 0.25, "val/x": 1.0})  # a validation runs again
    metrics.add(3, {"train/loss": 0.125})
    metrics.add(3, {"train/loss": 0.125})
    assert read_metrics(path) == [*ROWS, MetricRow(3, "train/loss", 0.125)]


def test_metrics_that_are_deleted_while_a_run_writes_begin_anew(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.csv", 0)
    (tmp_path / "metrics.csv").unlink()
    metrics.add(1, {"train/loss": 0.5})
    assert read_metrics(tmp_path / "metrics.csv") == ROWS[:1]


def test_ours_and_a_csv_logger_s_are_two_files(tmp_path: Path, told: list[str]) -> None:
    logger = CSVLogger(tmp_path.parent, tmp_path.name, version="")
    ours = metrics_path(tmp_path)
    assert ours == tmp_path / "metrics.csv"
    write_metrics(ours, ROWS)  # of a start without that logger
    keep_csv_logs(trainer(logger), "fit")
    ours = metrics_path(tmp_path, [logger])
    assert ours == metrics_path(tmp_path) == tmp_path / "run_metrics.csv"
    assert read_metrics(ours) == ROWS
    for start, name in enumerate(["metrics.csv.earlier", "metrics.csv.earlier-2"]):
        text = f"epoch,step\n{start},1\n"
        (tmp_path / "metrics.csv").write_text(text)
        keep_csv_logs(trainer(logger), "fit")
        assert (tmp_path / name).read_text() == text
        assert f"kept as {name}" in told[-1]


def test_other_verbs_leave_a_csv_logger_s_file_alone(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path.parent, tmp_path.name, version="")
    (tmp_path / "metrics.csv").write_text("epoch,step\n0,1\n")
    for _ in range(2):
        keep_csv_logs(trainer(logger), "validate")
        logger.log_metrics({"val/x": 1.0}, step=2)
        logger.finalize("success")
    assert (tmp_path / "metrics.csv").read_text() == "epoch,step\n0,1\n"
    assert (tmp_path / "validate" / "metrics.csv").read_text().split() == ["step,val/x", "2,1.0"]


def test_a_config_of_the_user_s_is_no_run_s(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert config_path(tmp_path) == path
    path.write_text("# lightning.pytorch==2.6.6\ntrainer: {}\n")
    assert config_path(tmp_path) == path
    path.write_text("# mine\ntrainer: {}\n")
    assert config_path(tmp_path) == tmp_path / "run_config.yaml"
