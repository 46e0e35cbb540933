"""Inpaint a folder of pictures: python -m datamodules.predict photos out --preset lama-medium

Masks come from NAME.mask.png beside each picture (white = inpaint), or from --masks, a folder with masks of the
pictures' names or a pattern such as '{name}_mask*.png', or are painted by a preset. Files are found and read as by
make_shards. Pixels outside the mask come out as they went in.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datamodules.account import Account
from datamodules.images.conversion import stored_picture
from datamodules.images.reading import Turn, read_turn, to_rgb, upright
from datamodules.own_masks import mask_files
from datamodules.samples.captions import decode_text
from datamodules.writing.folders import find_photos, walk
from datamodules.writing.mask_places import MaskPlaces
from inpaint_module.commands.config_command import ConfigCommand
from inpaint_module.commands.errors import exit_code_of
from inpaint_module.embedded import ASSETS
from inpaint_module.export import load_weights, module_from_configs
from inpaint_module.files import atomic_write
from inpaint_module.inpaint_image import inpaint_image
from inpaint_module.lightning_module import InpaintDiffusion
from inpaint_module.masks import MaskGenerator, preset
from inpaint_module.randomness import Stream, key

MODEL = ASSETS / "inpainter" / "model.yaml"
_MAX_PIXELS = 200_000_000


class Picture(NamedTuple):
    """A picture to inpaint.

    Attributes:
        path: the file.
        mask: its mask's file; None for a painted one.
        number: among all pictures.
        out: where the result goes.
        caption: the file of its caption, if there is one.
    """

    path: Path
    mask: Path | None
    number: int
    out: Path
    caption: Path | None = None


def find_pictures(folder: Path, out: Path, masks: str | None, painted: bool, account: Account) -> list[Picture]:
    """The pictures under a folder, by name, as make_shards finds them.

    Args:
        folder: with its subfolders.
        out: where the results go.
        masks: where masks are besides NAME.mask.png, see `MaskPlaces`.
        painted: look for no masks.
        account: counts what is left aside.

    Raises:
        ValueError: if there are none, if one has no mask, or if two would have the same result.
    """
    names = dict(sorted(walk(folder, account))) if folder.is_dir() else {}
    places = None if masks is None or painted else MaskPlaces(masks, folder)
    photos = sorted(find_photos(names, places, (), account))
    if account.refused or not photos:
        raise ValueError("\n".join(account.refused) or f"{folder}: expected a folder with images, found none")
    pictures: dict[Path, Picture] = {}
    for number, (path, beside) in enumerate(photos):
        target = (out / path).with_suffix(".png")
        if target in pictures:
            raise ValueError(
                f"{folder / path}: {pictures[target].path} would have the same result {target}; rename one"
            )
        files = {purpose: folder / file for purpose, file in beside.items()}
        if not painted and "mask" not in files:
            place = f"{path.stem}.mask.png beside it" + (f", or by --masks {masks}" if masks else "")
            raise ValueError(f"{folder / path}: expected its mask at {place}; found none. Or give --preset")
        mask = None if painted else files["mask"]
        pictures[target] = Picture(folder / path, mask, number, target, files.get("txt"))
    return list(pictures.values())


def check_outputs(pictures: Sequence[Picture], folder: Path, out: Path) -> None:
    """Refuse results that would fall on a picture or a mask, or that the next start would take for pictures.

    Raises:
        ValueError: naming the file or folder.
    """
    if out.exists() and out.samefile(folder):
        raise ValueError(f"{out}: expected another folder for the results than that of the pictures")
    inside = next((above for above in (out.absolute(), *out.absolute().parents) if above.exists()), out).resolve()
    if folder.resolve() in (inside, *inside.parents):
        raise ValueError(f"{out}: expected a folder outside of {folder}, whose pictures would be the results next time")
    inputs = {(state.st_dev, state.st_ino) for picture in pictures for state in _states(picture)}
    for picture in pictures:
        if picture.out.exists():
            state = picture.out.stat()
            if (state.st_dev, state.st_ino) in inputs:
                raise ValueError(f"{picture.out}: the result would replace a picture or a mask; choose another folder")


def _states(picture: Picture) -> list[os.stat_result]:
    return [path.stat() for path in (picture.path, picture.mask) if path is not None and path.exists()]


def read_picture(path: Path) -> Tensor:
    """An upright picture in sRGB, uint8 (3, H, W).

    Raises:
        ValueError: naming the file.
    """
    try:
        picture = to_rgb(upright(stored_picture(path.read_bytes(), path.name, _MAX_PIXELS).image))
        return torch.from_numpy(np.array(picture)).movedim(-1, 0)
    except Exception as error:  # Pillow raises many kinds on damaged files, SyntaxError among them
        raise ValueError(f"{path}: {error}") from error


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


def find_bad(pictures: Sequence[Picture], ways: dict[str, bool], skip: bool) -> dict[Path, str]:
    """The pictures that cannot be inpainted, each with the reason; nothing is computed yet.

    Raises:
        ValueError: of the first, unless they are to be skipped.
    """
    bad: dict[Path, str] = {}
    for picture in pictures:
        try:
            size = read_picture(picture.path).shape[1:]
            if picture.mask is not None:
                mask_of(picture, (size[0], size[1]), preset("sd"), 0, **ways)
        except ValueError as error:
            if not skip:
                raise ValueError(f"{error}. Nothing was inpainted; --skip-bad leaves such pictures out") from error
            bad[picture.path] = str(error)
    return bad


def load_model(
    configs: Sequence[Path], checkpoint: Path | None, steps: int | None, overrides: Sequence[str] = ()
) -> InpaintDiffusion:
    """A model ready to inpaint, on the GPU if there is one; without configs the shipped one."""
    module = module_from_configs(configs or [MODEL], overrides)
    if checkpoint is not None:
        load_weights(module, checkpoint)
    elif configs:
        sys.stderr.write("no --checkpoint: the weights are as the config makes them\n")
    if steps is not None:
        module.sampling_steps = steps
    return module.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _parser() -> ConfigCommand:
    parser = ConfigCommand(
        "python -m datamodules.predict", __doc__, parts=["model"], default="the small model that ships"
    )
    parser.add_argument("pictures", type=Path, help="folder of images, with its subfolders")
    parser.add_argument("out", type=Path, help="folder for the PNGs, named as the pictures")
    parser.add_argument(
        "--masks",
        metavar="PATTERN",
        help="a folder of masks with the pictures' names, or a pattern such as '{name}_mask*.png', from each picture's "
        "folder (default: NAME.mask.png beside NAME)",
    )
    parser.add_argument(
        "--preset", metavar="NAME", help="paint masks instead: one that `python -m inpaint_module.masks --help` names"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="weights, such as runs/quickstart/checkpoints/last.ckpt (default: as the config makes them)",
    )
    parser.add_argument(
        "--caption",
        default="",
        metavar="TEXT",
        help="for models with text encoders, of pictures without a NAME.txt (default: an empty one)",
    )
    flag = partial(parser.add_argument, action="store_true")
    flag("--inverted-masks", help="black = inpaint (default: white)")
    flag("--transparent-masks", help="inpaint where mask files are transparent, as ComfyUI saves them (default: white)")
    flag("--skip-bad", help="leave out pictures that cannot be read, list them, and end with exit code 1")
    _add_numbers(parser)
    return parser


def _add_numbers(parser: argparse.ArgumentParser) -> None:
    number = partial(parser.add_argument, type=int, metavar="N")
    number("--steps", help="denoiser calls a picture (default: the config's)")
    number("--tile", default=512, help="pixels of each side that are seen at once (default %(default)s)")
    number("--overlap", default=128, help="pixels that neighbouring tiles share (default %(default)s)")
    number("--margin", help="pixels of context around the mask (default: half a tile)")
    number("--working-side", help="inpaint with the long side at N pixels (default: full size)")
    number("--seed", default=0, help="of painted masks (default %(default)s)")


class Predicted(NamedTuple):
    """How many pictures were inpainted and how many of them had an empty mask; the others, each with the reason."""

    total: int
    empty: int
    bad: dict[Path, str]


def predict(options: argparse.Namespace, overrides: Sequence[str]) -> Predicted:
    """Inpaint them all; results that are written stay, whatever comes after them."""
    account, painted = Account(), options.preset is not None
    pictures = find_pictures(options.pictures, options.out, options.masks, painted, account)
    check_outputs(pictures, options.pictures, options.out)
    ways = {"inverted": options.inverted_masks, "transparent": options.transparent_masks}
    bad = find_bad(pictures, ways, options.skip_bad)
    good = [picture for picture in pictures if picture.path not in bad]
    module = load_model(options.config, options.checkpoint, options.steps, overrides)
    painter, empty = preset(options.preset or "sd"), 0
    for picture in tqdm(good, unit="image"):
        image = read_picture(picture.path)
        mask = mask_of(picture, (image.shape[1], image.shape[2]), painter, options.seed, **ways)
        empty += not mask.any()
        _write(picture.out, _inpainted(module, picture, image, mask, options))
    sys.stdout.write(f"{len(good)} pictures in {options.out}\n{account.left()}")
    return Predicted(len(good), empty, bad)


def _inpainted(
    module: InpaintDiffusion, picture: Picture, image: Tensor, mask: Tensor, options: argparse.Namespace
) -> Tensor:
    beside = picture.caption
    caption = options.caption if beside is None else decode_text(beside.read_bytes()).strip()
    sizes = {name: getattr(options, name) for name in ("tile", "overlap", "margin", "working_side")}
    image, mask = image.to(module.device), mask.to(module.device)
    return inpaint_image(module, image, mask, position=picture.number, caption=caption, **sizes)


def _write(path: Path, result: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        Image.fromarray(np.ascontiguousarray(result.cpu().movedim(0, -1).numpy())).save(file, "PNG")


def _run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    done = predict(options, overrides)
    if done.empty:
        sys.stdout.write(f"{done.empty} of them have an empty mask and came out unchanged\n")
    if done.bad:
        sys.stderr.write(f"{len(done.bad)} pictures left out:\n" + "".join(f"  {why}\n" for why in done.bad.values()))
    return 1 if done.bad else 0


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    options, overrides = _parser().parse(arguments)
    return exit_code_of(lambda: _run(options, overrides))


if __name__ == "__main__":
    sys.exit(main())
