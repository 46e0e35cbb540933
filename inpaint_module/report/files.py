"""What the report leaves in the run folder: the page, the numbers, the pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from inpaint_module.callbacks.image_grid import to_pil
from inpaint_module.callbacks.run_record import METRICS, RECORD, read_metrics
from inpaint_module.metrics.fill_scores import ScoredPreset, flat_scores
from inpaint_module.report.caption_sheet import SheetRow, caption_sheet
from inpaint_module.report.page import page
from inpaint_module.sampling import InpaintedImages

_LARGEST_PICTURE = 256


def pictures_of(result: InpaintedImages) -> dict[str, Image.Image]:
    """What the model was given, what it made of it, and the truth, at most 256 pixels wide and high."""
    shown = {"hole": result.masked_image, "fill": result.composite, "photo": result.image}
    pictures = {name: to_pil(image[0]) for name, image in shown.items()}
    for picture in pictures.values():
        picture.thumbnail((_LARGEST_PICTURE, _LARGEST_PICTURE), Image.Resampling.LANCZOS)
    return pictures


def write_report(folder: Path, step: int, presets: Sequence[ScoredPreset]) -> None:
    """Write `report.html`, `report.json` and `report/<preset>.png` into a run folder."""
    (folder / "report").mkdir(parents=True, exist_ok=True)
    for part in presets:
        sheet_of(part).save(folder / "report" / f"{part.name}.png")
    numbers = {
        "step": step,
        "presets": {part.name: flat_scores(part.mean()) for part in presets},
        "photos": [
            {"key": first.key, "position": first.position, "caption": first.caption}
            | {"presets": {part.name: flat_scores(part.photos[number].scores) for part in presets}}
            for number, first in enumerate(presets[0].photos)
        ],
    }
    (folder / "report.json").write_text(json.dumps(numbers, indent=1) + "\n")
    metrics, record = folder / METRICS, folder / RECORD
    text = page(
        folder.resolve().name,
        step,
        presets,
        read_metrics(metrics) if metrics.is_file() else [],
        json.loads(record.read_text()) if record.is_file() else {},
    )
    (folder / "report.html").write_text(text, encoding="utf-8")


def sheet_of(part: ScoredPreset) -> Image.Image:
    """The pictures of one preset with what was measured under each."""
    rows = []
    for photo in part.photos:
        psnr = {fill: scores.psnr_inside for fill, scores in photo.scores.items()}
        line = (
            f"{psnr['model']:.1f} dB in the hole; mean colour {psnr['mean_colour']:.1f}, autoencoder {psnr['vae']:.1f}"
        )
        rows.append(SheetRow(list(photo.pictures.values()), [line, photo.key, photo.caption]))
    return caption_sheet(part.name, list(part.photos[0].pictures), rows)
