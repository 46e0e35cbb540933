"""Pages: what a value says is text, wherever it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from page_reader import Page
from PIL import Image

from inpaint_module.compare_runs import Run, page
from inpaint_module.report import pages
from inpaint_module.training.run_folder import MetricRow

EVIL = "<img src=x onerror=\"alert('1')\">&"


def test_names_of_runs_settings_metrics_and_pictures_are_text(tmp_path: Path) -> None:
    grid = tmp_path / f"{EVIL}.png"
    Image.new("RGB", (2, 2)).save(grid)
    runs = [Run(f"{EVIL}{n}", {EVIL: f"{EVIL}{n}"}, {EVIL: float(n)}, grid) for n in range(2)]
    seen = Page(page(runs))
    assert seen.names.count("img") == len(seen.images) == 2
    assert {image["alt"] for image in seen.images} == {f"{EVIL}0", f"{EVIL}1"}
    assert seen.text.count(EVIL) >= 2 * 5 + 2
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in seen.images)


def test_a_comparison_is_scored_as_a_report() -> None:
    """Means over presets by hand: 14 and 15 dB; of the seam less is better."""
    scores = [{"a.psnr_inside": 13, "b.psnr_inside": 15, "a.seam": 0.2}, {"a.psnr_inside": 15, "a.seam": 0.1}]
    history = [MetricRow(step, name, 2.0 / step) for step in (1, 2) for name in ("train/loss", "val/psnr_inside")]
    runs = [
        Run(f"run{n}", {}, {f"report.{name}": value for name, value in each.items()}, None, history)
        for n, each in enumerate(scores)
    ]
    text = page(runs)
    said = " ".join(Page(text).text.split())
    assert "run1 fills the holes best: 15.0 dB PSNR on the photos of the report, 1.0 dB more than run0" in said
    assert "▲ 1.0 better than run0" in said
    assert "▲ 0.100 better than run0" in said
    assert "LPIPS" not in said
    assert text.count("<polyline") == 4
    assert "2 steps of run0" in said
    assert "fills the holes best" not in page([Run("run", {}, {"val/loss": 1.0}, None)])


def test_templates_escape_and_name_nothing_unknown() -> None:
    folder = Path(pages.__file__).parent / "templates"
    for path in folder.glob("*.*"):
        assert not re.search(r"\|\s*safe|autoescape|Markup|<script|https?://", path.read_text())
    assert pages.render(
        "chart.svg", description=EVIL, width=1, height=1, left=0, right=0, levels=[], steps=[], lines=[]
    )
    with pytest.raises(UndefinedError, match="'maker' is undefined"):
        pages.render("compare.html")
