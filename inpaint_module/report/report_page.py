"""The validation report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from inpaint_module.files import redacted_command
from inpaint_module.metrics.scores import PLAIN_FILLS, FillScores, ScoredPhoto, ScoredPreset, mean_scores
from inpaint_module.report import pages
from inpaint_module.report.pages import Line, line_chart, smoothed
from inpaint_module.training.run_folder import MetricRow

_QUARTERS = {"little noise": "one", "second": "two", "third": "three", "most noise": "faint"}  # and styles
SMOOTHING = 20  # of the losses, in logged values


class PaintedSample(NamedTuple):
    """A picture of the user's: `pictures` by what they show, the hole first, then what was painted at some steps."""

    name: str
    prompt: str
    pictures: dict[str, Image.Image]


class Column(NamedTuple):
    """A score as it is shown."""

    score: str
    head: str
    unit: str
    digits: int
    more_is_better: bool
    meaning: str


COLUMNS = (
    Column("psnr_inside", "PSNR in the hole", "dB", 1, True, "How near the fill is to what was hidden, by pixels."),
    Column(
        "ssim_inside",
        "SSIM in the hole",
        "",
        3,
        True,
        "Whether light, contrast and structure are the photo's. An even fill does well: it has no wrong structure.",
    ),
    Column("seam", "Seam", "", 3, False, "Steps along the border of the mask that the photo does not have, 0 to 1."),
    Column("lpips", "LPIPS", "", 3, False, "Distance of the whole composite as a vision network sees it."),
    Column(
        "psnr_outside",
        "PSNR outside",
        "dB",
        1,
        True,
        "Known pixels as the model decodes them. They are put back in the end, so this harms nothing but the seam.",
    ),
)
_CEILING = "autoencoder alone"
_MEANINGS = {
    "Plain": "The best of the fills that need no model: smooth (each pixel the mean of its neighbours), "
    "OpenCV's Telea (where OpenCV is installed), the mean colour of the known pixels, and grey.",
    "Autoencoder alone": "The whole photo encoded and decoded: no model in front of this autoencoder does much better.",
}


def page(
    run: str,
    step: int,
    presets: Sequence[ScoredPreset],
    metrics: Sequence[MetricRow],
    record: Mapping[str, Any],
    notes: Sequence[str] = (),
    samples: Sequence[PaintedSample] = (),
) -> str:
    """Write the page.

    Args:
        run: its name.
        step: optimizer steps so far.
        presets: what was measured, at least one.
        metrics: rows of the run's `metrics.csv`; none for no curves.
        record: the run's `run.json`; empty for nothing about it.
        notes: sentences about how the pictures came about.
        samples: pictures of the user's, painted over time.
    """
    means = {preset.name: preset.mean() for preset in presets}
    columns = [c for c in COLUMNS if any(not math.isnan(getattr(mean["model"], c.score)) for mean in means.values())]
    return pages.render(
        "report.html",
        run=run,
        facts=_facts(step, record),
        summary=_summary(presets),
        notes=notes,
        row_head="Masks",
        columns=columns,
        rows={name: [_cell(column, mean) for column in columns] for name, mean in means.items()},
        meanings={column.head: column.meaning for column in columns} | _MEANINGS,
        presets=[{"name": preset.name, "photos": list(map(_photo, preset.photos))} for preset in presets],
        samples=[{"name": each.name, "prompt": each.prompt, "pictures": _shown(each.pictures)} for each in samples],
        charts=_charts(metrics),
        about=_about(record),
    )


def _facts(step: int, record: Mapping[str, Any]) -> list[str]:
    starts = record.get("starts") or [{}]
    facts = [f"step {step:,}", str(starts[0].get("time", ""))[:10], str(record.get("device", ""))]
    return [fact for fact in facts if fact]


def _summary(presets: Sequence[ScoredPreset]) -> dict[str, Any]:
    """The result, for a sentence or two."""
    means = [preset.mean() for preset in presets]
    psnr = {fill: mean_scores(mean[fill] for mean in means).psnr_inside for fill in means[0]}
    plain, name = max((psnr[fill], name) for fill, name in PLAIN_FILLS.items() if fill in psnr)
    gain = psnr["model"] - plain
    return {
        "photos": len(presets[0].photos),
        "masks": f"{len(presets)} kinds of masks" if len(presets) > 1 else f"{presets[0].name} masks",
        "psnr": number(psnr["model"], 1),
        "gain": f"{abs(gain):.1f}",
        "word": "better" if gain >= 0 else "worse",
        "plain": f"{name}, {number(plain, 1)}",
        "ceiling": number(psnr["vae"], 1),
    }


def _cell(column: Column, mean: Mapping[str, FillScores]) -> dict[str, Any]:
    """The model's score, and what to hold it against."""
    values = {fill: float(getattr(scores, column.score)) for fill, scores in mean.items()}
    shown = {name: values[fill] for fill, name in PLAIN_FILLS.items() if fill in values} | {_CEILING: values["vae"]}
    return {
        "head": column.head,
        "value": number(values["model"], column.digits),
        "unit": f" {column.unit}" if column.unit else "",
        "others": {name: number(v, column.digits) for name, v in shown.items() if not math.isnan(v)},
        **_gain(column, values),
    }


def _gain(column: Column, values: Mapping[str, float]) -> dict[str, str]:
    """How much better than the best plain fill, in words and by a sign, not by colour alone."""
    plain = [values[fill] for fill in PLAIN_FILLS if not math.isnan(values.get(fill, math.nan))]
    if not plain or math.isnan(values["model"]):
        return {"gain": "", "kind": ""}
    return gain_over(column, values["model"], max(plain) if column.more_is_better else min(plain), "plain")


def gain_over(column: Column, value: float, other: float, name: str) -> dict[str, str]:
    """How much better or worse a score is than another one of that name."""
    gain = value - other if column.more_is_better else other - value
    kind, sign, word = ("up", "▲", "better") if gain >= 0 else ("down", "▼", "worse")
    return {"gain": f"{sign} {abs(gain):.{column.digits}f} {word} than {name}", "kind": kind}


def number(value: float, digits: int) -> str:
    """A score to so many digits; a dash for none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _photo(photo: ScoredPhoto) -> dict[str, Any]:
    pictures = _shown(photo.pictures)
    psnr, plain = (number(photo.scores[fill].psnr_inside, 1) for fill in ("model", "smooth"))
    return {"key": photo.key, "caption": photo.caption, "pictures": pictures, "psnr": psnr, "plain": plain}


def _shown(pictures: Mapping[str, Image.Image]) -> list[dict[str, Any]]:
    """For the templates."""
    return [
        {"what": what, "width": picture.width, "height": picture.height, "url": pages.picture_url(picture)}
        for what, picture in pictures.items()
    ]


def _charts(metrics: Sequence[MetricRow]) -> list[dict[str, Any]]:
    """Loss and PSNR over the run, of what metrics.csv holds at two steps or more."""
    series = {name: list(points(metrics, name)) for name in {row.metric for row in metrics}}
    charts = {
        "Training loss, by step": _with_mean(series.get("train/loss", [])),
        "Validation loss at fixed noise and timesteps, by step": [
            Line("weights of validation", series.get("val/loss", []), "one"),
            Line("as trained, without EMA", series.get("val/loss_raw", []), "two"),
            Line("in the hole", series.get("val/loss_hole", []), "three"),
            Line("outside", series.get("val/loss_known", []), "faint"),
        ],
        "Validation loss by quarter of the timesteps, by step": [
            Line(name, series.get(f"val/loss_q{number}", []), style)
            for number, (name, style) in enumerate(_QUARTERS.items(), 1)
        ],
        "Learning rate, by step": [Line("learning rate", series.get("train/learning_rate", []), "one")],
        "Norm of the gradients before clipping, by step": _with_mean(series.get("train/grad_norm", [])),
        "PSNR in the hole, all validation photos, by step": [
            Line("model", series.get("val/psnr_inside", []), "one"),
            Line("smooth fill", series.get("val/psnr_inside_smooth", []), "two"),
            Line("mean colour", series.get("val/psnr_inside_mean_colour", []), "three"),
        ],
    }
    return [
        chart(title, kept) for title, lines in charts.items() if (kept := [each for each in lines if each.points[1:]])
    ]


def _with_mean(found: list[tuple[int, float]]) -> list[Line]:
    """Values by step, and what they are without their noise."""
    wide = min(SMOOTHING, max(1, len(found) // 5))
    return [Line("each logged step", found, "faint"), Line(f"mean of {wide}", smoothed(found, wide), "one")]


def points(metrics: Sequence[MetricRow], name: str) -> Iterable[tuple[int, float]]:
    """(step, value) of one metric, where it is finite."""
    return ((row.step, row.value) for row in metrics if row.metric == name and math.isfinite(row.value))


def chart(title: str, lines: Sequence[Line]) -> dict[str, Any]:
    """A drawn chart with its legend, for `charts.html`."""
    legend = [{"name": line.name, "style": line.style, "last": f"{line.points[-1][1]:.4g}"} for line in lines]
    last = ", ".join(f"{each['name']} {each['last']}" for each in legend)
    return {"title": title, "legend": legend, "drawn": line_chart(f"{title}. At the end: {last}.", lines)}


def _about(record: Mapping[str, Any]) -> dict[str, str]:
    """What the run was."""
    if not record:
        return {}
    starts, ranks = record.get("starts") or [], record.get("ranks", 1)
    facts = {
        "Command": " ".join(redacted_command(list(map(str, record.get("command", []))))),
        "Started": ", ".join(f"{start['time']} at step {start['step']:,}" for start in starts),
        "Device": f"{record.get('device', '–')}, {ranks} rank{'s' * (ranks != 1)}",
        "Seed": record.get("seed"),
        "Weights that train": f"{record.get('parameters', 0):,}",
        "Autoencoder": str((record.get("vae") or {}).get("vae_sha256", ""))[:16],
        "Versions": ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items()),
    }
    return {name: str(value) for name, value in facts.items() if value}
