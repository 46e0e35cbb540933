"""The page of a report: what it says of scores, text that stays text, colours that can be read, charts and sheets."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from page_reader import Page
from PIL import Image

from inpaint_module.metrics.scores import (
    FillScores,
    ScoredPhoto,
    ScoredPreset,
)
from inpaint_module.report.pages import (
    STYLE,
    Line,
    SheetRow,
    line_chart,
    masked_in_red,
    nice_ticks,
    sheet,
    smoothed,
    thinned,
)
from inpaint_module.report.report_page import page
from inpaint_module.training.run_folder import MetricRow


def scored(name: str = "sd", **changes: str) -> ScoredPreset:
    scores = {"model": FillScores(15, 30, 0.5, 0.1), "vae": FillScores(29, 31, 0.9, 0.01)}
    scores |= {"mean_colour": FillScores(12, math.nan, 0.2, 0.3), "grey": FillScores(11, math.nan, 0.1, 0.4)}
    scores |= {"smooth": FillScores(11.5, math.nan, 0.1, 0.4)}  # and no Telea, as without OpenCV
    picture = Image.new("RGB", (8, 8))
    photo = ScoredPhoto(changes.get("key", "k"), 0, changes.get("caption", ""), scores, {"fill": picture})
    return ScoredPreset(name, [photo])


def test_what_data_says_is_text_not_markup() -> None:
    evil = '<script>alert("1")</script>&'
    record = {"command": [evil], "device": evil, "starts": [{"time": "2026-01-02T03:04:05", "step": 0}]}
    seen = Page(page(evil, 1, [scored(key=evil, caption=evil)], [], record))
    assert "script" not in seen.names
    assert seen.text.count(evil) >= 5
    assert "2026-01-02" in seen.text


def test_the_page_says_better_or_worse_and_leaves_out_what_is_not_there() -> None:
    text = Page(page("run", 1, [scored()], [], {})).text
    assert "3.0 dB better than the best plain fill (mean colour, 12.0 dB)" in text
    assert "▲ 0.200 better than plain" in text  # the seam, of which less is better
    assert "In 1 validation photo under sd masks" in text
    for absent in ("LPIPS", "Curves", "The run", "nan"):
        assert absent not in text
    worse = scored()
    worse.photos[0].scores["model"] = FillScores(10, 30, 0.1, 0.4, 0.2)
    text = Page(page("run", 1, [worse, scored("outpaint")], [], {})).text
    assert "▼ 2.0 worse than plain" in text
    assert "2 kinds of masks" in text
    assert "LPIPS" in text


def luminance(colour: str) -> float:
    """Relative, of WCAG 2: `#1c1b19` to 0..1."""
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_words_and_lines_stand_out_in_light_and_dark() -> None:
    themes = [dict(re.findall(r"--(\w+):(#\w+)", part)) for part in re.findall(r":root\{(.*?)\}", STYLE, re.S)]
    assert len(themes) == 2
    for theme in themes:
        for behind in ("paper", "card"):
            for name, least in {"ink": 7, "soft": 4.5, "up": 4.5, "down": 4.5, "one": 3, "two": 3, "faint": 3}.items():
                low, high = sorted((luminance(theme[name]), luminance(theme[behind])))
                assert (high + 0.05) / (low + 0.05) >= least, (name, behind)


def test_curves_need_two_points() -> None:
    one, two = [MetricRow(1, "train/loss", 1.0)], [MetricRow(s, "train/loss", v) for s, v in ((1, 1.0), (2, 0.5))]
    assert "Curves" not in page("run", 1, [scored()], one, {})
    assert page("run", 1, [scored()], two, {}).count("<polyline") == 2


def test_charts_by_hand() -> None:
    assert nice_ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]
    assert nice_ticks(12.3, 14.6) == pytest.approx([12, 12.5, 13, 13.5, 14, 14.5, 15])
    assert nice_ticks(0.5, 0.5) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert smoothed([(1, 1.0), (2, 3.0), (3, 5.0)], 2) == [(1, 1.0), (2, 2.0), (3, 4.0)]
    assert thinned([(n, float(n)) for n in range(1, 801)])[:2] == [(2, 1.5), (4, 3.5)]
    drawn = line_chart("a & b", [Line("l", [(0, 0.0), (5, math.nan), (10, 1.0)], "one")])
    assert 'points="52.0,218.0 448.0,12.0"' in drawn
    assert 'aria-label="a &amp; b"' in drawn


def test_sheets_by_hand() -> None:
    red, blue = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (40, 20), "blue")
    drawn = sheet("title", ["a", "b"], [SheetRow([red, blue], ["much too long " * 9, ""])] * 2)
    assert drawn.size == (30 + 40 + 3 * 8, 8 + 36 + 2 * (20 + 36 + 16))
    assert [drawn.getpixel(at) for at in ((8, 44), (46, 44), (85, 63))] == [(255, 0, 0), (0, 0, 255), (0, 0, 255)]
    assert drawn.getpixel((92, 70)) == (255, 255, 255)


def test_a_mask_over_a_photo_by_hand() -> None:
    """Green of 100 is a grey of 59; under the mask 0.3 of it and 0.7 of the red."""
    seen = np.asarray(masked_in_red(Image.new("RGB", (2, 1), (0, 100, 0)), torch.tensor([[0, 1]])))
    assert seen[0].tolist() == [[59, 59, 59], [175, 49, 59]]


def test_notes_are_on_the_page_as_text() -> None:
    seen = Page(page("run", 1, [scored()], [], {}, ["decoded <b>otherwise</b>"]))
    assert "decoded <b>otherwise</b>" in seen.text
