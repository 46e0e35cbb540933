"""Pairs to learn removal from: the embedded photos with scribbles and text over them.

python -m tests.recipes.removal_pairs data/scribbled

OUT/train and OUT/val get photos with something drawn on them, NAME.png, where it is, NAME.mask.png, and the photos as
they were, NAME.target.png.
The same photos and options give the same files.
"""

from __future__ import annotations

import argparse
import io
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from datamodules.shards.shard_set import image_bytes
from datamodules.shards.shard_specs import open_shards

WORDS = ("SAMPLE", "Draft 3", "do not copy", "HELLO", "2026", "for review", "lorem ipsum", "x = y + 1")
_MARGIN = 5  # pixels that the mask is wider on both sides than what is drawn, whose edges are soft


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


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--versions", type=int, default=4, help="how often each training photo is drawn on (4)")
    given = parser.parse_args()
    for part, versions in (("train", given.versions), ("val", 1)):
        count = make_pairs(f"embedded:{part}", given.out / part, versions)
        print(f"{count} pairs in {given.out / part}")  # noqa: T201


if __name__ == "__main__":
    main()
