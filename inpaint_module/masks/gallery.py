"""Look at a mask generator: inpaint masks --preset sd --out sheet.png

Paints masks and lays some over photos, beside what they measure: coverage, pieces, and how much mask is lost on the
latent grid by each way to reduce it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse import Namespace
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from tqdm import tqdm

from inpaint_module.cli import options
from inpaint_module.cli.errors import exit_code_of
from inpaint_module.cli.parser import make_parts, read_config
from inpaint_module.files import atomic_write_picture, check_replaceable
from inpaint_module.masks.generator import MaskGenerator
from inpaint_module.masks.presets import preset
from inpaint_module.morphology import mask_leak, reduce_mask
from inpaint_module.randomness import Stream, key
from inpaint_module.report.pages import RED, masked_in_red
from inpaint_module.weights import ASSETS

PHOTOS = ASSETS / "photos"
RATIOS, LEAKY = (8, 16, 32), ("nearest", "nearest-exact", "bilinear", "area", "max")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_INK, _FAINT, _PAPER = (25, 25, 30), (205, 205, 212), (255, 255, 255)
_TILE, _GAP, _COLUMNS, _ROWS, _PANEL = 176, 6, 8, 4, 380

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


class Statistics(NamedTuple):
    """What a sheet says about a generator.

    Attributes:
        coverage: float (B,), masked share of each mask, 0..1.
        components: pieces of each mask.
        leak: (reduction, ratio) to the mean leak, 0..1.
    """

    coverage: Tensor
    components: list[int]
    leak: dict[tuple[str, int], float]


def statistics(masks: Tensor, *, progress: bool = False) -> Statistics:
    """Measure bool masks (B, 1, H, W); `progress` shows a bar, as many take half a minute."""
    leaks: dict[tuple[str, int], list[Tensor]] = {(how, ratio): [] for ratio in RATIOS for how in LEAKY}
    components: list[int] = []
    with tqdm(
        total=len(masks), desc="measuring masks", unit="mask", leave=False, disable=not progress, dynamic_ncols=True
    ) as bar:
        for part in masks.split(32):
            for how, ratio in leaks:
                whole = part[..., : part.shape[-2] // ratio * ratio, : part.shape[-1] // ratio * ratio]
                leaks[how, ratio].append(mask_leak(whole, reduce_mask(whole, ratio, how)))
            components += count_components(part)
            bar.update(len(part))
    leak = {name: torch.cat(parts).mean().item() for name, parts in leaks.items()}
    return Statistics(masks.flatten(1).float().mean(1), components, leak)


def load_photos(folder: Path | None = None, number: int = _COLUMNS * _ROWS) -> list[Image.Image]:
    """Photos to lay masks over: of a folder, or those that ship with the package.

    Raises:
        ValueError: there are none.
    """
    photos = [Image.open(file) for file in _files(folder or PHOTOS)[:number]]
    if not photos:
        raise ValueError(f"no photos ({', '.join(SUFFIXES)}) in {folder or PHOTOS}; name a folder with --photos")
    return [ImageOps.exif_transpose(photo).convert("RGB") for photo in photos]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES) if folder.is_dir() else []


def draw_sheet(
    title: str,
    generator: MaskGenerator,
    photos: list[Image.Image],
    *,
    number: int = 256,
    size: int = 512,
    seed: int = 0,
    progress: bool = False,
) -> Image.Image:
    """Photos under masks on the left, their numbers on the right.

    Args:
        title: what stands above.
        generator: whose masks.
        photos: repeated as often as needed.
        number: masks to measure; the first 32 are shown.
        size: height and width in pixels at which they are painted.
        seed: of the masks.
        progress: show a bar while they are painted, and one while they are measured.
    """
    keys = key(seed, torch.arange(number), Stream.MASK)
    parts = tqdm(keys.split(8), desc="painting masks", leave=False, disable=not progress, dynamic_ncols=True)
    masks = torch.cat([generator(part, size, size) for part in parts])
    left = _COLUMNS * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (left + _PANEL, _ROWS * (_TILE + _GAP) + _GAP), _PAPER)
    for nth, mask in enumerate(masks[: _COLUMNS * _ROWS, 0]):
        place = [_GAP + index * (_TILE + _GAP) for index in (nth % _COLUMNS, nth // _COLUMNS)]
        photo = ImageOps.fit(photos[nth % len(photos)], (_TILE, _TILE))
        sheet.paste(masked_in_red(photo, mask), (place[0], place[1]))
    measured = statistics(masks, progress=progress)
    _draw_panel(ImageDraw.Draw(sheet), left + 2 * _GAP, f"{title}\n{number} masks at {size} px", measured)
    return sheet


def _draw_panel(draw: ImageDraw.ImageDraw, x: int, title: str, numbers: Statistics) -> None:
    big, small = ImageFont.load_default(18), ImageFont.load_default(13)
    deciles = torch.quantile(numbers.coverage, torch.tensor([0.1, 0.5, 0.9])).tolist()
    parts = torch.tensor(numbers.components)
    draw.text((x, 10), title, _INK, big)
    mean = numbers.coverage.mean().item()
    draw.text((x, 62), f"coverage: mean {mean:.1%}; 10, 50, 90 % of masks below", _INK, small)
    draw.text((x, 80), "{:.1%}, {:.1%}, {:.1%}".format(*deciles), _INK, small)
    _draw_histogram(draw, (x, 108, x + _PANEL - 40, 298), numbers.coverage, small)
    summary = f"pieces: mean {parts.float().mean().item():.1f}, most {parts.max().item()}"
    draw.text((x, 330), f"{summary}; in one piece {(parts == 1).float().mean().item():.0%}", _INK, small)
    draw.text((x, 376), "masked pixels lost on the latent grid", _INK, small)
    for column, ratio in enumerate(RATIOS):
        draw.text((x + 130 + 70 * column, 400), f"f{ratio}", _INK, small)
    for row, how in enumerate(LEAKY):
        draw.text((x, 422 + 22 * row), how, _INK, small)
        for column, ratio in enumerate(RATIOS):
            leak = numbers.leak[how, ratio]
            place = (x + 130 + 70 * column, 422 + 22 * row)
            draw.text(place, f"{leak:.1%}", RED if leak > 0.05 else _INK, small)


def _draw_histogram(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], shares: Tensor, font: Font) -> None:
    """Bars of 5 % each, with a line at the mean."""
    left, top, right, bottom = box
    counts = torch.histc(shares, 20, 0, 1)
    step = (right - left) / 20
    for nth, share in enumerate((counts / counts.max()).tolist()):
        if share:
            bar = left + nth * step
            draw.rectangle((bar, bottom - share * (bottom - top), bar + step - 2, bottom), RED)
    mean = left + shares.mean().item() * (right - left)
    draw.line((mean, top, mean, bottom), _INK, 1)
    draw.line((left, bottom + 1, right, bottom + 1), _FAINT, 2)
    for percent in (0, 25, 50, 75, 100):
        draw.text((left + percent / 100 * (right - left), bottom + 8), f"{percent} %", _INK, font, anchor="ma")


def count_components(masks: Tensor) -> list[int]:
    """In how many pieces each mask is; not for the hot path.

    The runs of all rows are the nodes of a graph, in which runs that touch in successive rows are joined; labels sink
    to the least of their neighbours', with pointer jumping in between (Shiloach and Vishkin 1982).

    Args:
        masks: bool (B, 1, H, W). Pixels that touch at a corner alone are joined.

    Returns:
        One number per mask; 0 for an empty one.
    """
    batch, _, height, width = masks.shape
    rows = np.zeros((batch * height, width + 2), np.int8)
    rows[:, 1:-1] = masks.cpu().numpy().reshape(batch * height, width)
    edges = np.diff(rows, axis=1)
    line, start = np.nonzero(edges == 1)
    stop = np.nonzero(edges == -1)[1]  # runs are start .. stop - 1
    above, below = _touching(line, start, stop, height, width)
    label = _least_labels(len(line), above, below)
    roots = np.nonzero(label == np.arange(len(line)))[0]
    return np.bincount(line[roots] // height, minlength=batch).tolist()


def _touching(line: np.ndarray, start: np.ndarray, stop: np.ndarray, height: int, width: int) -> tuple[np.ndarray, ...]:
    """Pairs of runs in successive rows of one mask that share a side or a corner."""
    stride = 2 * (width + 2)
    own = line * stride
    first = np.searchsorted(own + stop, own - stride + start, side="left")  # ends at or after this one's start
    last = np.searchsorted(own + start, own - stride + stop, side="right")  # begins at or before this one's end
    number = np.where(line % height == 0, 0, np.maximum(last - first, 0))
    below = np.repeat(np.arange(len(line)), number)
    nth = np.arange(len(below)) - np.repeat(np.cumsum(number) - number, number)
    return first[below] + nth, below


def _least_labels(number: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """For every node of a graph the least node that it is connected with."""
    label = np.arange(number)
    while True:
        low = np.minimum(label[left], label[right])
        if np.array_equal(label[left], label[right]):
            return label
        before = label.copy()
        for end in (left, right):
            np.minimum.at(label, before[end], low)
            np.minimum.at(label, end, low)
        label = label[label]


_MAKER = "inpaint masks"


def run(given: Namespace, overrides: Sequence[str] = ()) -> int:
    """The command, with what `options.masks` parsed."""
    check_replaceable(given.out, _MAKER)
    generator = preset(given.preset) if given.preset else generator_of(given.config)
    title = given.preset or given.config.stem
    photos = load_photos(given.photos)
    sheet = draw_sheet(title, generator, photos, number=given.number, size=given.size, seed=given.seed, progress=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_picture(given.out, sheet, _MAKER)
    sys.stdout.write(f"{given.out}\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    return exit_code_of(lambda: run(*options.masks().parse(arguments)))


def generator_of(config: Path) -> MaskGenerator:
    """The `mask_generator` of a YAML file, however deep it stands; or the whole file, if that is one.

    Raises:
        ValueError: the file holds none.
    """
    document = read_config(config)
    found = _find(document) or document
    if not isinstance(found, dict) or "class_path" not in found:
        raise ValueError(f"{config} must hold a mask_generator, or a class_path with init_args, and holds neither")
    return make_parts({"mask_generator": found}, mask_generator=MaskGenerator).mask_generator


def _find(node: Any) -> Any:
    """The first `mask_generator` in nested dictionaries, or None."""
    if not isinstance(node, dict):
        return None
    if "mask_generator" in node:
        return node["mask_generator"]
    return next((found for value in node.values() if (found := _find(value))), None)


if __name__ == "__main__":
    sys.exit(main())
