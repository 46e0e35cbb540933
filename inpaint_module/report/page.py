"""The validation report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from inpaint_module.metrics.fill_scores import FillScores, ScoredPhoto, ScoredPreset, mean_scores
from inpaint_module.redaction import redacted_command
from inpaint_module.report.line_chart import Line, line_chart, smoothed
from inpaint_module.report.style import STYLE
from inpaint_module.run_folder import MetricRow

_SMOOTHING = 20  # of the losses, in logged values


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
    Column("features", "Features", "", 3, False, "Distance in the hole as a vision model sees it."),
    Column(
        "psnr_outside",
        "PSNR outside",
        "dB",
        1,
        True,
        "Known pixels as the model decodes them. They are put back in the end, so this harms nothing but the seam.",
    ),
)
_PLAIN = {"mean_colour": "mean colour", "grey": "grey"}
_CEILING = "autoencoder alone"
_MEANINGS = {
    "Plain": "The better of two fills that need no model: grey, and the mean colour of the known pixels.",
    "Autoencoder alone": "The whole photo encoded and decoded: no model in front of this autoencoder does much better.",
}


def page(
    run: str,
    step: int,
    presets: Sequence[ScoredPreset],
    metrics: Sequence[MetricRow],
    record: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> str:
    """Write the page.

    Args:
        run: its name.
        step: optimizer steps so far.
        presets: what was measured, at least one.
        metrics: rows of the run's `metrics.csv`; none for no curves.
        record: the run's `run.json`; empty for nothing about it.
        notes: sentences about how the pictures came about.
    """
    title = f"{run}, step {step:,}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}: validation report</title><style>{STYLE}</style></head><body>"
        f'<header><p class="kicker">Validation report</p><h1>{html.escape(run)}</h1>'
        f"{_facts_line(step, record)}</header>"
        f"<main>{_summary(presets)}{''.join(map(_note, notes))}{_table(presets)}{''.join(map(_section, presets))}"
        f"{_curves(metrics)}{_about(record)}"
        "</main></body></html>\n"
    )


def _facts_line(step: int, record: Mapping[str, Any]) -> str:
    starts = record.get("starts") or [{}]
    facts = [f"step {step:,}", str(starts[0].get("time", ""))[:10], str(record.get("device", ""))]
    return f'<p class="facts">{" · ".join(html.escape(fact) for fact in facts if fact)}</p>'


def _summary(presets: Sequence[ScoredPreset]) -> str:
    """The result in a sentence or two."""
    means = [preset.mean() for preset in presets]
    psnr = {fill: mean_scores(mean[fill] for mean in means).psnr_inside for fill in means[0]}
    plain, name = max((psnr[fill], name) for fill, name in _PLAIN.items())
    gain, photos = psnr["model"] - plain, len(presets[0].photos)
    return (
        f'<p class="lead">In {photos} validation photo{"s" * (photos != 1)} under {_count(presets)}, what the model '
        f"paints into the holes has <strong>{_number(psnr['model'], 1)} dB</strong> PSNR: "
        f"<strong>{abs(gain):.1f} dB {'better' if gain >= 0 else 'worse'}</strong> than the best plain fill "
        f"({name}, {_number(plain, 1)} dB). The autoencoder alone would allow {_number(psnr['vae'], 1)} dB.</p>"
    )


def _note(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _count(presets: Sequence[ScoredPreset]) -> str:
    return f"{len(presets)} kinds of masks" if len(presets) > 1 else f"{html.escape(presets[0].name)} masks"


def _table(presets: Sequence[ScoredPreset]) -> str:
    """A row per preset, a column per score that there is; in each cell the model's, and what to hold it against."""
    means = {preset.name: preset.mean() for preset in presets}
    columns = [c for c in COLUMNS if any(not math.isnan(getattr(mean["model"], c.score)) for mean in means.values())]
    heads = "".join(
        f'<th scope="col" role="columnheader">{column.head} <span class="way">{_way(column)}</span></th>'
        for column in columns
    )
    rows = "".join(
        f'<tr role="row"><th scope="row" role="rowheader">{html.escape(name)}</th>'
        + "".join(_cell(column, mean) for column in columns)
        + "</tr>"
        for name, mean in means.items()
    )
    told = {column.head: column.meaning for column in columns} | _MEANINGS
    meanings = "".join(f"<dt>{head}</dt><dd>{meaning}</dd>" for head, meaning in told.items())
    return (
        '<section aria-labelledby="scores"><h2 id="scores">Scores</h2>'
        '<table role="table"><thead role="rowgroup"><tr role="row"><th scope="col" role="columnheader">Masks</th>'
        f'{heads}</tr></thead><tbody role="rowgroup">{rows}</tbody></table>'
        f"<details><summary>What the columns mean</summary><dl>{meanings}</dl></details></section>"
    )


def _way(column: Column) -> str:
    return ("higher" if column.more_is_better else "lower") + " is better"


def _cell(column: Column, mean: Mapping[str, FillScores]) -> str:
    values = {fill: float(getattr(scores, column.score)) for fill, scores in mean.items()}
    shown = {name: values[fill] for fill, name in _PLAIN.items()} | {_CEILING: values["vae"]}
    others = "".join(
        f"<li>{name} <b>{_number(value, column.digits)}</b></li>"
        for name, value in shown.items()
        if not math.isnan(value)
    )
    return (
        f'<td role="cell" data-head="{column.head}"><span class="value">{_number(values["model"], column.digits)}'
        f"<small>{f' {column.unit}' if column.unit else ''}</small></span>{_gain(column, values)}"
        f'<ul class="others">{others}</ul></td>'
    )


def _gain(column: Column, values: Mapping[str, float]) -> str:
    """How much better than the best plain fill, in words and by a sign, not by colour alone."""
    plain = [values[fill] for fill in _PLAIN if not math.isnan(values[fill])]
    if not plain or math.isnan(values["model"]):
        return ""
    gain = values["model"] - max(plain) if column.more_is_better else min(plain) - values["model"]
    kind, sign = ("up", "▲") if gain >= 0 else ("down", "▼")
    word = "better" if gain >= 0 else "worse"
    return f'<span class="gain {kind}">{sign} {abs(gain):.{column.digits}f} {word} than plain</span>'


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _section(preset: ScoredPreset) -> str:
    name = html.escape(preset.name)
    figures = "".join(map(_figure, preset.photos))
    head = f'<h2 id="p-{name}">{name}</h2>'
    return f'<section aria-labelledby="p-{name}">{head}<div class="photos">{figures}</div></section>'


def _figure(photo: ScoredPhoto) -> str:
    key = html.escape(photo.key)
    psnr, plain = photo.scores["model"].psnr_inside, photo.scores["mean_colour"].psnr_inside
    pictures = "".join(
        f'<div><img alt="{key}: {what}" width="{picture.width}" height="{picture.height}" src="{data_url(picture)}">'
        f"<span>{what}</span></div>"
        for what, picture in photo.pictures.items()
    )
    said = f"<q>{html.escape(photo.caption)}</q>" if photo.caption else ""
    return (
        f'<figure><div class="trio">{pictures}</div><figcaption><span class="key">{key}</span>'
        f"<span><b>{_number(psnr, 1)} dB</b> in the hole; mean colour {_number(plain, 1)} dB</span>{said}"
        "</figcaption></figure>"
    )


def data_url(picture: Image.Image) -> str:
    """A JPEG inside an address: a fifth of a PNG's bytes, and nobody measures on it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _curves(metrics: Sequence[MetricRow]) -> str:
    """Loss and PSNR over the run, of what metrics.csv holds at two steps or more."""
    series = {name: list(_points(metrics, name)) for name in {row.metric for row in metrics}}
    loss = series.get("train/loss", [])
    wide = min(_SMOOTHING, max(1, len(loss) // 5))
    charts = {
        "Training loss, by step": [
            Line("each logged step", loss, "faint"),
            Line(f"mean of {wide}", smoothed(loss, wide), "one"),
        ],
        "PSNR in the hole, all validation photos, by step": [
            Line("model", series.get("val/psnr_inside", []), "one"),
            Line("mean colour", series.get("val/psnr_inside_mean_colour", []), "two"),
            Line("grey", series.get("val/psnr_inside_grey", []), "three"),
        ],
    }
    figures = "".join(_chart(title, lines) for title, lines in charts.items())
    if not figures:
        return ""
    return f'<section aria-labelledby="curves"><h2 id="curves">Curves</h2><div class="photos">{figures}</div></section>'


def _points(metrics: Sequence[MetricRow], name: str) -> Iterable[tuple[int, float]]:
    return ((row.step, row.value) for row in metrics if row.metric == name and math.isfinite(row.value))


def _chart(title: str, lines: Sequence[Line]) -> str:
    lines = [line for line in lines if len(line.points) > 1]
    if not lines:
        return ""
    last = ", ".join(f"{line.name} {line.points[-1][1]:.4g}" for line in lines)
    drawn = line_chart(f"{title}. At the end: {last}.", lines)
    legend = "".join(f'<li class="{line.style}">{line.name} <b>{line.points[-1][1]:.4g}</b></li>' for line in lines)
    return f'<figure><figcaption><b>{title}</b><ul class="legend">{legend}</ul></figcaption>{drawn}</figure>'


def _about(record: Mapping[str, Any]) -> str:
    """What the run was."""
    if not record:
        return ""
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
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items() if value)
    return f'<section aria-labelledby="about"><h2 id="about">The run</h2><dl class="about">{rows}</dl></section>'
