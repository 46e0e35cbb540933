"""Pairs to learn removal from: the embedded photos with scribbles and text over them, in ink that can be seen through.

python -m tests.recipes.removal_pairs data/scribbled

OUT/train and OUT/val get photos with something drawn on them, NAME.png, where it is, NAME.mask.png, and the photos as
they were, NAME.target.png.
The same photos and options give the same files.

python -m tests.recipes.removal_pairs data/scribbled --show runs/removal

writes OUT/removal.jpg, before and after of photos of OUT/val, and says how near the fills are.
"""

from __future__ import annotations

import argparse
import io
import math
import random
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from datamodules.decode.reading import image_bytes
from datamodules.shards.shard_specs import open_shards
from inpaint_module.fills import smooth_fill
from inpaint_module.inpaint_image import inpaint_image
from inpaint_module.pixels import to_unit_float
from inpaint_module.report.pages import SheetRow, fitted, sheet, to_pil
from inpaint_module.trained import load_model

WORDS = ("SAMPLE", "Draft 3", "do not copy", "HELLO", "2026", "for review", "lorem ipsum", "x = y + 1")
_INK = 0.5, 0.8  # least and most of what is drawn in what is seen
_SIDE = 256  # pixels at which ink is taken away: at twice the training's scale what lies under it stays sharper
_MARGIN = 3  # pixels that the mask is wider on both sides than what is drawn, whose edges are soft


def drawn_over(photo: Image.Image, seed: int) -> tuple[Image.Image, Image.Image]:
    """A photo with one to three scribbles and maybe a line of text on it, and the mask of them, white = drawn.

    Args:
        photo: RGB.
        seed: of all that is drawn.
    """
    dice, picture, mask = random.Random(seed), photo.copy(), Image.new("L", photo.size)
    brushes = ImageDraw.Draw(picture), ImageDraw.Draw(mask)
    unit = min(photo.size) / 256
    for _ in range(dice.randint(1, 3)):
        path, width = _scribble(dice, photo.size), round(dice.uniform(4, 12) * unit)
        for brush, colour in zip(brushes, (_colour(dice), 255), strict=True):
            brush.line(path, fill=colour, width=width, joint="curve")
    if dice.random() < 0.6:
        place = dice.uniform(0, 0.6) * photo.width, dice.uniform(0.05, 0.85) * photo.height
        word, font = dice.choice(WORDS), ImageFont.load_default(size=dice.uniform(20, 44) * unit)
        for brush, colour in zip(brushes, (_colour(dice), 255), strict=True):
            brush.text(place, word, fill=colour, font=font)
    picture = Image.blend(photo, picture, dice.uniform(*_INK))
    grown = mask.filter(ImageFilter.MaxFilter(2 * round(_MARGIN * unit) + 1))
    return picture, grown.point(lambda grey: 255 * (grey > 0))


def _scribble(dice: random.Random, size: tuple[int, int]) -> list[tuple[float, float]]:
    """Points along a wandering line."""
    x, y = dice.uniform(0.1, 0.9) * size[0], dice.uniform(0.1, 0.9) * size[1]
    points, reach = [(x, y)], min(size) * 0.22
    for _ in range(dice.randint(4, 9)):
        x = min(max(x + dice.uniform(-reach, reach), 0), size[0] - 1)
        y = min(max(y + dice.uniform(-reach, reach), 0), size[1] - 1)
        points.append((x, y))
    return points


def _colour(dice: random.Random) -> tuple[int, int, int]:
    return dice.randrange(256), dice.randrange(256), dice.randrange(256)


def make_pairs(shards: str, out: Path, versions: int = 1, most: int | None = None) -> int:
    """Write the pairs of all photos of a set; how many there are.

    Args:
        shards: of photos, such as embedded:train.
        out: a folder; made if missing.
        versions: how often each photo is drawn on, each time otherwise.
        most: at most so many photos.
    """
    out.mkdir(parents=True, exist_ok=True)
    photos = open_shards(shards)
    numbers = range(min(len(photos), most or len(photos)))
    for number in numbers:
        photo = Image.open(io.BytesIO(image_bytes(photos.read(number).fields))).convert("RGB")
        for version in range(versions):
            name = out / f"{number:04d}-{version}"
            picture, mask = drawn_over(photo, seed=number * 1000 + version)
            for suffix, file in (("png", picture), ("mask.png", mask), ("target.png", photo)):
                file.save(f"{name}.{suffix}")
    return len(numbers) * versions


def show(pairs: Path, run: Path, out: Path) -> dict[str, float]:
    """Take away what is drawn on the pairs of a folder, and draw four of them, before and after.

    Args:
        pairs: a folder of `make_pairs`.
        run: a run folder with its config and last checkpoint.
        out: where the picture goes.

    Returns:
        PSNR in dB where something was drawn, the mean over the pairs, by name.
    """
    module = load_model([run / "config.yaml"], run / "checkpoints/last.ckpt", None)
    found: dict[str, list[float]] = {"drawn on": [], "smooth fill": [], "this model": []}
    rows = []
    for mask_file in sorted(pairs.glob("*.mask.png")):
        name = mask_file.name.removesuffix(".mask.png")
        drawn, photo = (Image.open(pairs / f"{name}.{end}").convert("RGB") for end in ("png", "target.png"))
        image, target = (torch.from_numpy(np.array(each)).movedim(-1, 0) for each in (drawn, photo))
        mask = torch.from_numpy(np.array(Image.open(mask_file).convert("L")))[None] > 127
        fill = inpaint_image(module, image.to(module.device), mask.to(module.device), working_side=_SIDE).cpu()
        given = to_unit_float(image[None])
        for kind, filled in zip(found, (given, smooth_fill(given, mask[None]), to_unit_float(fill[None])), strict=True):
            wrong = (filled[0] - to_unit_float(target))[mask.expand(3, -1, -1)]
            found[kind].append(-10 * math.log10(max(wrong.square().mean().item(), 1e-10)))
        rows.append(SheetRow([fitted(each, 240) for each in (drawn, to_pil(fill), photo)], []))
    step = max(1, len(rows) // 4)
    heads = ("with scribbles and text", "taken away", "the photo")
    sheet("Photos that the model has not seen", heads, rows[::step][:4]).save(out, quality=88)
    return {kind: fmean(values) for kind, values in found.items()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--versions", type=int, default=4, help="how often each training photo is drawn on (4)")
    parser.add_argument("--show", type=Path, metavar="RUN", help="draw before and after of a run instead")
    given = parser.parse_args()
    if given.show:
        for kind, value in show(given.out / "val", given.show, given.out / "removal.jpg").items():
            print(f"{kind:<12} {value:.2f} dB where something was drawn")  # noqa: T201
        return
    for part, versions in (("train", given.versions), ("val", 1)):
        count = make_pairs(f"embedded:{part}", given.out / part, versions)
        print(f"{count} pairs in {given.out / part}")  # noqa: T201


if __name__ == "__main__":
    main()
