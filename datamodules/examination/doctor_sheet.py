"""The doctor's sheet: what the model sees of some samples, those with findings first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from datamodules.examination.examination import Examination
from datamodules.examination.findings import Finding
from inpaint_module.batch import Batch
from inpaint_module.report.caption_sheet import SheetRow, caption_sheet

_TILE = 176  # pixels of the longer side
_HEADS = ("image", "mask", "grown mask", "masked image", "VAE round trip")
_RED, _EDGE = (0.88, 0.18, 0.24), (160, 160, 165)


def draw_sheet(exam: Examination, title: str, rows: int = 8) -> Image.Image | None:
    """Image, mask, grown mask, masked image and round trip in a row per sample; None if nothing was read."""
    places: dict[str, tuple[int, int]] = {}
    for key, place in _places(exam):
        places.setdefault(key, place)
    if not places:
        return None
    chosen = telling_first(list(places), exam.findings)[:rows]
    made = [_row(exam, key, *places[key]) for key in chosen]
    return caption_sheet(title, _HEADS[: len(made[0].pictures)], made)


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


def _pictures(exam: Examination, number: int, index: int) -> list[Tensor]:
    """The columns of one sample, each (3, H, W) in 0..1."""
    batch = exam.batches[number]
    pictures = [_unit(batch["image"][index]), _tinted(batch, index)]
    if exam.encoded:
        encoded = exam.encoded[number]
        pictures += [encoded.grown[index].expand(3, -1, -1), encoded.masked[index]]
        pictures.append(encoded.decoded[index].nan_to_num(0, 0, 0))
    return pictures


def _unit(image: Tensor) -> Tensor:
    """Any image as 0..1; out-of-range floats are stretched to it."""
    image = image[:3].cpu()
    if image.dtype == torch.uint8:
        return image.float() / 255
    low, high = image.min().clamp_max(0), image.max().clamp_min(1)
    return ((image - low) / (high - low)).nan_to_num(0)


def _tinted(batch: Batch, index: int) -> Tensor:
    """The picture in grey, and red where it is masked."""
    grey = _unit(batch["image"][index]).mean(0, keepdim=True).expand(3, -1, -1)
    red = torch.tensor(_RED)[:, None, None].expand_as(grey)
    mask = F.interpolate(batch["mask"][index][None].float().cpu(), size=grey.shape[-2:], mode="nearest")[0]
    return torch.where(mask > 0.5, 0.35 * grey + 0.65 * red, grey)


def _row(exam: Examination, key: str, number: int, index: int) -> SheetRow:
    batch = exam.batches[number]
    titles = [finding.title.upper() for finding in exam.findings if key in finding.keys]
    share = (batch["mask"][index] > 0.5).float().mean().item()
    words = f"{key}   masked {share:.0%}   {', '.join(titles)}"
    caption = batch["caption"][index] if "caption" in batch else ""
    pictures = [_picture(each) for each in _pictures(exam, number, index)]
    return SheetRow(pictures, [words, caption or "(no caption)"])


def _picture(image: Tensor) -> Image.Image:
    scale = _TILE / max(image.shape[-2:])
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    pixels = image.clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy()
    kind = Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST
    picture = Image.fromarray(pixels).resize((size[1], size[0]), kind)
    ImageDraw.Draw(picture).rectangle((0, 0, size[1] - 1, size[0] - 1), outline=_EDGE)  # white ends somewhere
    return picture
