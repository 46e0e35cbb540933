"""What the report leaves in the run folder: the page, the numbers, the pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from inpaint_module.files import atomic_write_picture, atomic_write_text
from inpaint_module.metrics.scores import ScoredPreset, flat_scores
from inpaint_module.report.pictures import SheetRow, sheet, to_pil
from inpaint_module.report.report_page import page
from inpaint_module.sampling import InpaintedImages
from inpaint_module.training.run_folder import RECORD, REPORT, metrics_path, read_metrics, read_record, write_json

Content = TypeVar("Content")
_LARGEST_PICTURE = 256


def pictures_of(result: InpaintedImages) -> dict[str, Image.Image]:
    """What the model was given, what it made of it, and the truth, at most 256 pixels wide and high."""
    shown = {"hole": result.masked_image, "fill": result.composite, "photo": result.image}
    pictures = {name: to_pil(image[0]) for name, image in shown.items()}
    for picture in pictures.values():
        picture.thumbnail((_LARGEST_PICTURE, _LARGEST_PICTURE), Image.Resampling.LANCZOS)
    return pictures


def write_report(folder: Path, step: int, presets: Sequence[ScoredPreset], notes: Sequence[str] = ()) -> None:
    """Write `report.html`, `report.json` and `report/<preset>.png` into a run folder; `notes` are for the page."""
    (folder / "report").mkdir(parents=True, exist_ok=True)
    for part in presets:
        atomic_write_picture(folder / "report" / f"{part.name}.png", sheet_of(part))
    numbers = {
        "step": step,
        "presets": {part.name: flat_scores(part.mean()) for part in presets},
        "photos": [
            {"key": first.key, "position": first.position, "caption": first.caption}
            | {"presets": {part.name: flat_scores(part.photos[number].scores) for part in presets}}
            for number, first in enumerate(presets[0].photos)
        ],
    }
    write_json(folder / REPORT, numbers)
    metrics, record = if_whole(read_metrics, metrics_path(folder)), if_whole(read_record, folder / RECORD)
    text = page(folder.resolve().name, step, presets, metrics or [], record or {}, notes)
    atomic_write_text(folder / "report.html", text)


def if_whole(read: Callable[[Path], Content], path: Path) -> Content | None:
    """What a file holds; where there is none, or a damaged one, the page does without."""
    try:
        return read(path) if path.exists() else None
    except ValueError as error:
        rank_zero_info(f"ValidationReport: left out {error}")
        return None


def sheet_of(part: ScoredPreset) -> Image.Image:
    """The pictures of one preset with what was measured under each."""
    rows = []
    for photo in part.photos:
        psnr = {fill: scores.psnr_inside for fill, scores in photo.scores.items()}
        line = f"{psnr['model']:.1f} dB in the hole; smooth fill {psnr['smooth']:.1f}, autoencoder {psnr['vae']:.1f}"
        rows.append(SheetRow(list(photo.pictures.values()), [line, photo.key, photo.caption]))
    return sheet(part.name, list(part.photos[0].pictures), rows)
