"""A run's folder: where it is, and its files, each written whole and checked when it is read."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from inpaint_module.files import append_lines, atomic_write_text, set_aside
from inpaint_module.parsing import parse_json
from inpaint_module.training.lightning_private import write_csv_into
from inpaint_module.training.run_lock import claim, holder

CONFIG, RECORD, METRICS, REPORT = "config.yaml", "run.json", "metrics.csv", "report.json"
OTHER_CONFIG = "run_config.yaml"  # its name where there is a config.yaml of the user's
OTHER_METRICS = "run_metrics.csv"  # their name where Lightning's CSVLogger writes a metrics.csv
CONFIG_HEAD = "lightning.pytorch=="  # in a comment at the beginning of each config that a run has written
_RECORD = {"starts": list, "command": list, "versions": dict, "device": str, "ranks": int, "data": dict, "vae": dict}
_RECORD |= {"parameters": int}


def run_folder(trainer: Trainer) -> Path:
    """Where a run's files are, config and checkpoints among them.

    The folder of the first TensorBoardLogger or CSVLogger; without one the `save_dir` of another logger, but for
    MLflow's, which is a database; else the trainer's `default_root_dir`. While another process trains there, what
    `validate`, `test` and `predict` write goes into a folder of that name in it.

    Every rank must ask at the same time, as in a callback's `setup`: the answer is that of rank 0.
    """
    folders = [logger.log_dir for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]
    folders += [each.save_dir for each in trainer.loggers if each.save_dir and not isinstance(each, MLFlowLogger)]
    folder = Path(next(iter(folders), trainer.default_root_dir))
    if trainer.state.fn not in (None, TrainerFn.FITTING) and holder(folder):
        folder /= trainer.state.fn.value
    return Path(trainer.strategy.broadcast(str(folder)))


def names_folder(trainer: Trainer) -> bool:
    """Whether a logger says where a run's files are."""
    return any(isinstance(logger, TensorBoardLogger | CSVLogger) for logger in trainer.loggers)


def keep_csv_logs(trainer: Trainer, verb: str) -> None:
    """Keep Lightning's CSVLogger from deleting what it wrote at an earlier start, as it does.

    For `fit` its file is renamed to `metrics.csv.earlier`; the other verbs write into a folder of their own name.
    """
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger) or not (path := Path(logger.log_dir) / METRICS).exists():
            continue
        if verb != "fit":
            write_csv_into(logger, path.parent / verb)
        elif _read_rows(path)[0] and not path.with_name(OTHER_METRICS).exists():
            path.rename(path.with_name(OTHER_METRICS))  # ours, of a start without a CSVLogger
        else:
            rank_zero_info(f"{path}: kept as {set_aside(path, 'earlier').name}: CSVLogger begins a new one")


def claim_on_all_ranks(trainer: Trainer, folder: Path) -> None:
    """Take a run folder for all ranks of a run; every one must ask at the same time.

    Raises:
        ValueError: on all ranks, naming the process that has it.
    """
    refusal = ""
    if trainer.is_global_zero:
        try:
            claim(folder)
        except ValueError as error:
            refusal = str(error)
    if refusal := trainer.strategy.broadcast(refusal):
        raise ValueError(refusal)


def config_path(folder: Path) -> Path:
    """The file of a run's config: `config.yaml`, but `run_config.yaml` where the former is not a run's."""
    own, other = folder / OTHER_CONFIG, folder / CONFIG
    foreign = other.exists() and not other.read_bytes().startswith(f"# {CONFIG_HEAD}".encode())
    return own if own.exists() or foreign else other


def read_json(path: Path, fields: Mapping[str, type]) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: naming the file, if it cannot be read, or if one of the fields is there and of another type.
    """
    try:
        content = parse_json(path.read_bytes(), str(path), strict=False).value
    except OSError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    for name, kind in fields.items():
        if name in content and not isinstance(content[name], kind):
            raise ValueError(f"{path}: {name}: expected {kind.__name__}, got {content[name]!r:.80}")
    return content


def read_record(path: Path) -> dict[str, Any]:
    """What a `run.json` says.

    Raises:
        ValueError: naming the file and the field, if it is not one.
    """
    record = read_json(path, _RECORD)
    for start in record.get("starts", []):
        if not isinstance(start, dict) or not isinstance(start.get("step"), int) or "time" not in start:
            raise ValueError(f"{path}: starts: expected objects of time and step, got {start!r:.80}")
    return record


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    atomic_write_text(path, json.dumps(content, indent=1) + "\n")


def or_aside(path: Path, error: ValueError) -> None:
    """A damaged file is no reason not to go on: rename it, and say so."""
    rank_zero_info(f"{error}. It is kept as {set_aside(path, 'damaged').name}, and a new one begins")


class MetricRow(NamedTuple):
    """One value of one metric after so many optimizer steps."""

    step: int
    metric: str
    value: float


def metrics_path(folder: Path, loggers: Sequence[Logger] = ()) -> Path:
    """The file of a run's metrics: `metrics.csv`, but `run_metrics.csv` where the former is or was a CSVLogger's."""
    own = folder / OTHER_METRICS
    others = [Path(logger.log_dir) for logger in loggers if isinstance(logger, CSVLogger)]
    return own if own.exists() or any(each.resolve() == folder.resolve() for each in others) else folder / METRICS


def read_metrics(path: Path) -> list[MetricRow]:
    """The rows of a metrics file, without a last line that was cut short.

    Raises:
        ValueError: naming the file and the line, if it is not one.
    """
    rows, wrong = _read_rows(path)
    if wrong:
        raise ValueError(wrong)
    return rows


def _read_rows(path: Path) -> tuple[list[MetricRow], str]:
    """The rows that can be read, and what is wrong with the file."""
    try:
        head, *lines = path.read_bytes().replace(b"\r\n", b"\n").split(b"\n")
    except OSError as error:
        return [], f"{path}: expected metrics, got {error}"
    if head.decode(errors="replace") != ",".join(MetricRow._fields) or not lines:
        return [], f"{path}: expected the columns step, metric, value, got {head[:80]!r}"
    rows, wrong = [], ""
    for number, line in enumerate(lines[:-1], 2):  # what comes after the last line end was cut short
        try:
            rows.append(_row(line.decode()))
        except (ValueError, csv.Error):
            wrong = wrong or f"{path}, line {number}: expected step, metric, value, got {line[:80]!r}"
    return rows, wrong


def _row(line: str) -> MetricRow:
    ((step, metric, value),) = csv.reader([line])
    if not metric.isprintable():
        raise ValueError(metric)
    return MetricRow(int(step), metric, float(value))


def write_metrics(path: Path, rows: Iterable[MetricRow]) -> None:
    """Write a new metrics file in place of the old one."""
    atomic_write_text(path, _lines([MetricRow._fields, *rows]))


def _lines(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class Metrics:
    """The metrics file of a run that goes on, or begins.

    Rows after the step that the run starts at are forgotten: they will be computed again. No metric gets two rows for
    one step, though a validation runs again after a kill.

    Args:
        path: of the file.
        step: optimizer steps so far.
    """

    def __init__(self, path: Path, step: int) -> None:
        rows, wrong = _read_rows(path) if path.exists() else ([], "")
        if wrong:
            or_aside(path, ValueError(wrong))
        kept = [row for row in rows if row.step <= step]
        if len(kept) < len(rows):
            rank_zero_info(f"{path}: {len(rows) - len(kept)} rows after step {step} are forgotten")
        kept = list({(row.metric, row.step): row for row in kept}.values())
        write_metrics(path, kept)
        self.path = path
        self._written = {row.metric: row.step for row in kept}

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Append a row for each metric that has none for this step yet."""
        new = [MetricRow(step, name, float(v)) for name, v in values.items() if self._written.get(name) != step]
        self._written |= {row.metric: row.step for row in new}
        if new and not self.path.exists():
            write_metrics(self.path, [])
        if new:
            append_lines(self.path, _lines(new))
