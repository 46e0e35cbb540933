"""Inpaint a folder of pictures: inpaint predict photos out --preset lama-medium

Masks come from NAME.mask.png beside each picture (white = inpaint), or from --masks, a folder with masks of the
pictures' names or a pattern such as '{name}_mask*.png', or are painted by a preset. Files are found and read as by
make_shards. Pixels outside the mask come out as they went in, with the file's colour profile, transparency and 16 bits
of grey. Only results of this command are replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jsonargparse import Namespace
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datamodules.account import Account, first_names, tell
from datamodules.decode import mask_files
from datamodules.decode.conversion import stored_picture
from datamodules.decode.reading import Turn, read_turn
from datamodules.writing.pictures import (
    MAKER,
    GivenPicture,
    Picture,
    caption_of,
    check_outputs,
    filled,
    find_pictures,
    read_given,
    write_png,
)
from inpaint_module.commands import options
from inpaint_module.commands.errors import exit_code_of
from inpaint_module.files import atomic_write
from inpaint_module.inpaint_image import inpaint_image
from inpaint_module.lightning_module import InpaintDiffusion
from inpaint_module.masks import MaskGenerator, preset
from inpaint_module.randomness import Stream, key
from inpaint_module.trained import load_model

_MAX_PIXELS = 200_000_000


def read_mask(path: Path, size: tuple[int, int], turn: Turn = Turn(), **ways: bool) -> Tensor:  # noqa: B008, immutable
    """A mask, bool (1, H, W), above one half, at the picture's `size` (H, W), read as training reads it.

    Args:
        path: the file.
        size: of the upright picture.
        turn: what the picture's EXIF says.
        ways: `inverted` and `transparent` of `mask_files.read_mask`.

    Raises:
        ValueError: naming the file.
    """
    try:
        data = stored_picture(path.read_bytes(), path.name, _MAX_PIXELS).data
        mask = mask_files.read_mask(data, size[::-1], turn, _MAX_PIXELS, **ways)
    except Exception as error:  # as above
        raise ValueError(f"{path}: {error}") from error
    if mask.size != (size[1], size[0]):
        mask = mask.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(mask))[None] >= 128


def mask_of(picture: Picture, size: tuple[int, int], painter: MaskGenerator, seed: int, **ways: bool) -> Tensor:
    """The mask of a picture of `size` (H, W): its file's, or painted by (seed, number); bool (1, H, W)."""
    if picture.mask is not None:
        turn = read_turn(stored_picture(picture.path.read_bytes(), picture.path.name, _MAX_PIXELS).image)
        return read_mask(picture.mask, size, turn, **ways)
    return painter(key(seed, torch.tensor([picture.number]), Stream.MASK), *size)[0]


def find_bad(pictures: Sequence[Picture], ways: dict[str, bool], skip: bool, account: Account) -> dict[Path, str]:
    """The pictures that cannot be inpainted, each with the reason; nothing is computed yet.

    Raises:
        ValueError: of the first, unless they are to be skipped.
    """
    bad: dict[Path, str] = {}
    for picture in pictures:
        try:
            given = read_given(picture.path, _MAX_PIXELS)
            if picture.fault:
                raise ValueError(picture.fault)
            if picture.mask is not None:
                mask_of(picture, given.rgb.shape[:2], preset("sd"), 0, **ways)
            caption_of(picture, "")
        except ValueError as error:
            if not skip:
                raise ValueError(f"{error}. Nothing was inpainted; --skip-bad leaves such pictures out") from error
            bad[picture.path] = str(error)
        else:
            for kind in given.notes:
                account.note(kind, picture.path.name)
    return bad


class Predicted(NamedTuple):
    """How many pictures were inpainted and how many of them had an empty mask; the others, each with the reason."""

    total: int
    empty: int
    bad: dict[Path, str]


def predict(options: Namespace, overrides: Sequence[str], account: Account) -> Predicted:
    """Inpaint them all; results that are written stay, whatever comes after them. `account` tells what was found."""
    painted = options.preset is not None
    pictures = find_pictures(options.pictures, options.out, options.masks, painted, account)
    check_outputs(pictures, options.pictures, options.out)
    ways = {"inverted": options.inverted_masks, "transparent": options.transparent_masks}
    bad = find_bad(pictures, ways, options.skip_bad, account)
    good = [picture for picture in pictures if picture.path not in bad]
    module = load_model(options.config, options.checkpoint, options.steps, overrides, untrained=options.untrained)
    painter, empty = preset(options.preset or "sd"), 0
    for picture in tqdm(good, unit="image"):
        try:
            given = read_given(picture.path, _MAX_PIXELS)
            mask = mask_of(picture, given.rgb.shape[:2], painter, options.seed, **ways)
            result = _inpainted(module, picture, given, mask, options)
        except ValueError as error:
            if not options.skip_bad:
                raise
            bad[picture.path] = str(error)
            continue
        empty += not mask.any()
        _write(picture.out, result, given)
    return Predicted(len(pictures) - len(bad), empty, bad)


def _inpainted(
    module: InpaintDiffusion, picture: Picture, given: GivenPicture, mask: Tensor, options: Namespace
) -> Image.Image:
    caption = caption_of(picture, options.caption)
    sizes = {name: getattr(options, name) for name in ("tile", "overlap", "margin", "working_side")}
    image = torch.from_numpy(given.rgb).movedim(-1, 0).to(module.device)
    try:
        fill = inpaint_image(module, image, mask.to(module.device), position=picture.number, caption=caption, **sizes)
    except ValueError as error:
        raise ValueError(f"{picture.path}: {error}") from error
    return filled(given, np.ascontiguousarray(fill.cpu().movedim(0, -1).numpy()), mask[0].cpu().numpy())


def _write(path: Path, result: Image.Image, given: GivenPicture) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        write_png(file, result, given, MAKER)


def run(given: Namespace, overrides: Sequence[str]) -> int:
    """The command, with what `options.predict` parsed."""
    account = Account()
    done = predict(given, overrides, account)
    tell(f"{done.total} pictures in {given.out}\n{account.left()}")
    for kind, (count, names) in account.noted.items():
        sys.stdout.write(f"{count} {kind}: {first_names(names, count)}\n")
    if done.empty:
        sys.stdout.write(f"{done.empty} of them have an empty mask and came out unchanged\n")
    if done.bad:
        sys.stderr.write(f"{len(done.bad)} pictures left out:\n" + "".join(f"  {why}\n" for why in done.bad.values()))
    return 1 if done.bad else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    return exit_code_of(lambda: run(*options.predict().parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
