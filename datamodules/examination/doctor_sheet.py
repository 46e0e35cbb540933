"""The doctor's sheet: what the model sees of some samples, those with findings first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from datamodules.examination.examination import Examination
from datamodules.examination.findings import Finding
from inpaint_module.pixels import to_unit_float
from inpaint_module.report.pictures import SheetRow, fitted, masked_in_red, sheet, to_pil

_TILE = 176  # pixels of the longer side
_HEADS = ("image", "mask", "grown mask", "masked image", "VAE round trip")
_EDGE = (160, 160, 165)


def draw_sheet(exam: Examination, title: str, rows: int = 8) -> Image.Image | None:
    """Image, mask, grown mask, masked image and round trip in a row per sample; None if nothing was read."""
    places: dict[str, tuple[int, int]] = {}
    for key, place in _places(exam):
        places.setdefault(key, place)
    if not places:
        return None
    chosen = telling_first(list(places), exam.findings)[:rows]
    made = [_row(exam, key, *places[key]) for key in chosen]
    return sheet(title, _HEADS[: len(made[0].pictures)], made)


def telling_first(keys: Sequence[str], findings: Sequence[Finding]) -> list[str]:
    """The keys, each once: the first of each finding, then the second of each, and so on; at last those of none."""
    last = max((len(finding.keys) for finding in findings), default=0)
    rank = dict.fromkeys(keys, last)
    for finding in findings:
        for place, key in enumerate(dict.fromkeys(finding.keys)):
            rank[key] = min(place, rank.get(key, last))
    return sorted(dict.fromkeys(keys), key=rank.__getitem__)


def _places(exam: Examination) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each key with the numbers of its batch and of its row; of what went through the VAE, if anything did."""
    shown = exam.encoded or exam.batches
    for number, batch in enumerate(exam.batches[: len(shown)]):
        keys = exam.encoded[number].keys if exam.encoded else batch["__key__"]
        for index, key in enumerate(keys):
            yield key, (number, index)


def _pictures(exam: Examination, number: int, index: int) -> list[Image.Image]:
    """The columns of one sample."""
    batch = exam.batches[number]
    photo = to_pil(_unit(batch["image"][index]))
    pictures = [photo, masked_in_red(photo, batch["mask"][index, 0] > 0.5)]
    if exam.encoded:
        encoded = exam.encoded[number]
        seen = (encoded.grown[index].expand(3, -1, -1), encoded.masked[index], encoded.decoded[index])
        pictures += [to_pil(each.nan_to_num(0, 0, 0)) for each in seen]
    return [_framed(each) for each in pictures]


def _unit(image: Tensor) -> Tensor:
    """Any image as 0..1; out-of-range floats are stretched to it."""
    image = image[:3].cpu()
    if image.dtype == torch.uint8:
        return to_unit_float(image)
    low, high = image.min().clamp_max(0), image.max().clamp_min(1)
    return ((image - low) / (high - low)).nan_to_num(0)


def _row(exam: Examination, key: str, number: int, index: int) -> SheetRow:
    batch = exam.batches[number]
    titles = [finding.title.upper() for finding in exam.findings if key in finding.keys]
    share = (batch["mask"][index] > 0.5).float().mean().item()
    words = f"{key}   masked {share:.0%}   {', '.join(titles)}"
    caption = batch["caption"][index] if "caption" in batch else ""
    return SheetRow(_pictures(exam, number, index), [words, caption or "(no caption)"])


def _framed(picture: Image.Image) -> Image.Image:
    picture = fitted(picture, _TILE)
    ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=_EDGE)  # white ends there
    return picture
