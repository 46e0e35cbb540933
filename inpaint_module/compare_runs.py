"""Lay run folders side by side: inpaint compare runs/a runs/b [--out compare.html]

Shows what differs in their configs, versions, data and VAE, the last value of every metric, the scores of their
validation reports, and, in the page, their curves and newest picture grids. Validation paints the masks of the run's
own generator: where generators differ, compare the reports, whose photos and masks are the same.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace

from inpaint_module.cli import options
from inpaint_module.cli.errors import exit_code_of
from inpaint_module.cli.parser import read_config
from inpaint_module.files import atomic_write_text, check_replaceable, redacted
from inpaint_module.report import pages
from inpaint_module.report.pages import Line, smoothed
from inpaint_module.report.report_page import COLUMNS, SMOOTHING, Column, chart, gain_over, number, points
from inpaint_module.training.run_folder import (
    CONFIG,
    METRICS,
    OTHER_CONFIG,
    RECORD,
    REPORT,
    MetricRow,
    metrics_path,
    read_json,
    read_metrics,
    read_record,
)

_SCORES = (".psnr_inside", ".ssim_inside", ".seam", ".lpips")
_MAKER = "inpaint compare"
_IGNORED = ("starts", "command", "data.position")  # differ between any two runs


class Run(NamedTuple):
    """A run folder: `settings` and `metrics` map dotted names to values; `grid` is its newest picture grid.

    `history` are the rows of its metrics file, of which `metrics` has the last of each.
    """

    name: str
    settings: dict[str, str]
    metrics: dict[str, float]
    grid: Path | None
    history: Sequence[MetricRow] = ()


class Row(NamedTuple):
    """One line of the comparison: a value per run, "-" where a run has none."""

    name: str
    values: list[str]


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested dicts and lists -> dotted names and texts: `{"a": [{"b": 1}]}` -> `{"a.0.b": "1"}`."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = {str(number): item for number, item in enumerate(value)}.items()
    else:
        return {prefix: str(value)}
    return {n: v for key, item in items for n, v in flatten(item, f"{prefix}.{key}".lstrip(".")).items()}


def read_run(folder: str | Path) -> Run:
    """A run folder's config, record and last metrics.

    Raises:
        ValueError: naming the folder, if it has no metrics.csv or no run.json, or a file of it that is damaged.
    """
    folder = Path(folder)
    rows = metrics_path(folder)
    if missing := [name for name, path in {METRICS: rows, RECORD: folder / RECORD}.items() if not path.is_file()]:
        raise ValueError(
            f"{folder}: expected a run folder with {METRICS} and {RECORD}, got none of {', '.join(missing)}: add the "
            "callback inpaint_module.training.run_record.RunRecord to the run's config"
        )
    record = flatten(redacted(read_record(folder / RECORD)))
    configs = [folder / name for name in (OTHER_CONFIG, CONFIG) if (folder / name).is_file()]
    settings = flatten(redacted(read_config(configs[0]))) if configs else {}
    settings |= {f"run.{name}": value for name, value in record.items() if not name.startswith(_IGNORED)}
    history = read_metrics(rows)
    metrics = {row.metric: row.value for row in history} | _scores(folder / REPORT)
    grids = sorted((folder / "grids").glob("*.png"))
    return Run(str(folder), settings, metrics, grids[-1] if grids else None, history)


def _scores(path: Path) -> dict[str, float]:
    """Those of a validation report, if there is one."""
    if not path.is_file():
        return {}
    scores = flatten({"report": read_json(path, {"presets": dict}).get("presets", {})})
    try:
        return {name: float(value) for name, value in scores.items() if name.endswith(_SCORES)}
    except ValueError as error:
        raise ValueError(f"{path}: presets: expected numbers, got {error}") from error


def differences(runs: Sequence[Run]) -> list[Row]:
    """The settings that are not equal in all runs, by name."""
    names = sorted({name for run in runs for name in run.settings})
    rows = [Row(name, [run.settings.get(name, "-") for run in runs]) for name in names]
    return [row for row in rows if len(set(row.values)) > 1]


def last_metrics(runs: Sequence[Run]) -> list[Row]:
    """The last value of every metric, by name."""
    names = sorted({name for run in runs for name in run.metrics})
    return [Row(name, [f"{run.metrics[name]:.4g}" if name in run.metrics else "-" for run in runs]) for name in names]


def text_table(heads: Sequence[str], rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal."""
    lines = [["", *heads], *([row.name, *row.values] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def page(runs: Sequence[Run]) -> str:
    """The comparison as one self-contained HTML page."""
    tables = {"Last metrics": last_metrics(runs), "What differs": differences(runs)}
    shown = [ComparedRun(run.name, report_scores(run.metrics), run.history, run.grid) for run in runs]
    return compare_page(
        shown, {title: [(row.name, row.values) for row in rows] for title, rows in tables.items()}, _MAKER
    )


def report_scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of scores of each preset, such as `report.sd.psnr_inside`, the mean over presets, by the score's name."""
    found: dict[str, list[float]] = {}
    for name, value in metrics.items():
        if name.startswith("report.") and name.endswith(_SCORES):
            found.setdefault(name.rpartition(".")[2], []).append(value)
    return {score: math.fsum(values) / len(values) for score, values in found.items()}


def run(given: Namespace, overrides: Sequence[str] = ()) -> int:
    """The command, with what `options.compare` parsed."""
    if given.out:
        check_replaceable(given.out, _MAKER)
    runs = [read_run(folder) for folder in given.runs]
    heads = [run.name for run in runs]
    tables = [text_table(heads, last_metrics(runs)), "what differs", text_table(heads, differences(runs))]
    sys.stdout.write("\n\n".join(tables) + "\n")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(given.out, page(runs))
        sys.stdout.write(f"\npage: {given.out}\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    return exit_code_of(lambda: run(*options.compare().parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())


_STYLES = ("one", "two", "three")  # of the first runs' lines; those of the others are faint
_CURVES = {
    "train/loss": "Training loss, smoothed, by step",
    "val/psnr_inside": "PSNR in the hole, all validation photos, by step",
}


class ComparedRun(NamedTuple):
    """What a page shows of a run.

    Attributes:
        name: its folder.
        scores: of its report, the mean over presets, by the names of `Scores`; none where it has no report.
        history: rows of its metrics file.
        grid: its newest picture grid, a PNG.
    """

    name: str
    scores: Mapping[str, float]
    history: Sequence[MetricRow]
    grid: Path | None


def compare_page(
    runs: Sequence[ComparedRun], tables: Mapping[str, Sequence[tuple[str, Sequence[str]]]], maker: str
) -> str:
    """Write the page.

    Args:
        runs: at least one; the others' scores are held against the first one's.
        tables: by their titles; rows of a name and a text for each run.
        maker: the command, as the page's generator.
    """
    columns = [column for column in COLUMNS if any(column.score in run.scores for run in runs)]
    return pages.render(
        "compare.html",
        maker=maker,
        heads=[run.name for run in runs],
        facts=[f"{max((row.step for row in run.history), default=0):,} steps of {run.name}" for run in runs],
        best=_best(runs),
        row_head="Run",
        columns=columns,
        rows={run.name: [_cell(column, run, runs[0]) for column in columns] for run in runs if run.scores},
        meanings={column.head: column.meaning for column in columns},
        charts=_charts(runs),
        tables={title: [{"name": name, "cells": cells} for name, cells in rows] for title, rows in tables.items()},
        figures=[
            {"name": run.name, "grid": run.grid.stem, "url": pages.data_url(run.grid.read_bytes(), "png")}
            for run in runs
            if run.grid
        ],
    )


def _best(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """The run with the best PSNR in the hole, and the one behind it; empty where none has a report."""
    ranked = sorted((run for run in runs if "psnr_inside" in run.scores), key=lambda run: -run.scores["psnr_inside"])
    if not ranked:
        return {}
    best = {"name": ranked[0].name, "psnr": number(ranked[0].scores["psnr_inside"], 1), "gain": "", "second": ""}
    if len(ranked) > 1:
        gain = number(ranked[0].scores["psnr_inside"] - ranked[1].scores["psnr_inside"], 1)
        best |= {"gain": gain if float(gain) else "", "second": ranked[1].name}
    return best


def _cell(column: Column, run: ComparedRun, first: ComparedRun) -> dict[str, Any]:
    value, other = (each.scores.get(column.score, math.nan) for each in (run, first))
    known = run is not first and not math.isnan(value) and not math.isnan(other)
    return {
        "head": column.head,
        "value": number(value, column.digits),
        "unit": f" {column.unit}" if column.unit else "",
        "others": {},
        **(gain_over(column, value, other, first.name) if known else {"gain": "", "kind": ""}),
    }


def _charts(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Loss and PSNR, a line for each run that has two points."""
    charts = []
    for metric, title in _CURVES.items():
        lines = []
        for place, run in enumerate(runs):
            found = list(points(run.history, metric))
            if metric == "train/loss":
                found = smoothed(found, min(SMOOTHING, max(1, len(found) // 5)))
            lines.append(Line(run.name, found, _STYLES[place] if place < len(_STYLES) else "faint"))
        if kept := [line for line in lines if len(line.points) > 1]:
            charts.append(chart(title, kept))
    return charts
