"""What the report leaves in the run folder: the page, the numbers, the pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from inpaint_module.files import atomic_write_picture, atomic_write_text
from inpaint_module.metrics.scores import ScoredPreset, flat_scores
from inpaint_module.report.pages import SheetRow, sheet, to_pil
from inpaint_module.report.report_page import PaintedSample, page
from inpaint_module.sampling import InpaintedImages
from inpaint_module.training.run_folder import RECORD, REPORT, metrics_path, read_metrics, read_record, write_json

Content = TypeVar("Content")
_LARGEST_PICTURE = 256
SAMPLES, _HOLE, _PROMPT = "samples", "hole.png", "prompt.txt"  # the folder of a run, and in that of each sample
_MOST_STEPS = 6  # of a sample, side by side


def write_sample(folder: Path, name: str, prompt: str, step: int, hole: Image.Image, fill: Image.Image) -> None:
    """Keep what was painted at a step in `samples/NAME/step_NNNNNN.png` of a run folder."""
    inside = folder / SAMPLES / name
    inside.mkdir(parents=True, exist_ok=True)
    atomic_write_text(inside / _PROMPT, prompt)
    atomic_write_picture(inside / _HOLE, hole)
    atomic_write_picture(inside / f"step_{step:06d}.png", fill)


def painted_samples(folder: Path, step: int) -> list[PaintedSample]:
    """What a run folder holds of each sample up to a step, by name: six steps, the first and the last among them."""
    found = []
    for hole in sorted((folder / SAMPLES).rglob(_HOLE)):
        steps = {int(path.stem[5:]): path for path in hole.parent.glob("step_*.png") if path.stem[5:].isdigit()}
        chosen = _spread([number for number in sorted(steps) if number <= step])
        paths = {"hole": hole} | {f"step {number:,}": steps[number] for number in chosen}
        read = {what: if_whole(_read_picture, path) for what, path in paths.items()}
        pictures = {what: picture for what, picture in read.items() if picture is not None}
        prompt = if_whole(lambda path: path.read_text("utf-8", "replace"), hole.with_name(_PROMPT)) or ""
        found.append(PaintedSample(hole.parent.relative_to(folder / SAMPLES).as_posix(), prompt, pictures))
    return [sample for sample in found if len(sample.pictures) > 1]


def samples_sheet(samples: Sequence[PaintedSample]) -> Image.Image:
    """A row per sample, a column per step."""
    heads = list(dict.fromkeys(what for sample in samples for what in sample.pictures))
    rows = []
    for sample in samples:
        blank = Image.new("RGB", sample.pictures["hole"].size, "white")
        shown = [sample.pictures.get(what, blank) for what in heads]
        rows.append(SheetRow(shown, [f"{sample.name}: {sample.prompt}" if sample.prompt else sample.name]))
    return sheet(SAMPLES, heads, rows)


def _spread(numbers: Sequence[int]) -> list[int]:
    """At most six of them, evenly, the first and the last among them."""
    last, most = len(numbers) - 1, min(_MOST_STEPS, len(numbers)) - 1
    return [numbers[round(place * last / most)] for place in range(most + 1)] if most > 0 else list(numbers)


def _read_picture(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error


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
    painted = painted_samples(folder, step)
    text = page(folder.resolve().name, step, presets, metrics or [], record or {}, notes, painted)
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
