"""Runs side by side as one HTML page, which looks like the report's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inpaint_module.report import pages
from inpaint_module.report.pages import Line, smoothed
from inpaint_module.report.report_page import COLUMNS, SMOOTHING, Column, chart, gain_over, number, points
from inpaint_module.training.run_folder import MetricRow

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
