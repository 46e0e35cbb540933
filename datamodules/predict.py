"""Inpaint a folder of pictures: inpaint predict photos out --preset lama-medium

Masks come from NAME.mask.png beside each picture (white = inpaint), or from --masks, a folder with masks of the
pictures' names or a pattern such as '{name}_mask*.png', or are painted by a preset. Files are found and read as by
make_shards. Pixels outside the mask come out as they went in, with the file's colour profile, transparency and 16 bits
of grey. Only results of this command are replaced.

The model works at the scale at which it was trained: the hole and its surroundings are brought down to that size,
filled in one piece, brought back and joined to the photo. How far below its size a picture was filled is said.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from jsonargparse import Namespace
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datamodules.account import Account, first_names, write_out
from datamodules.decode import mask_files
from datamodules.decode.conversion import GivenPicture, filled, read_given, stored_picture, write_png
from datamodules.decode.reading import Turn, read_turn
from datamodules.writing.folders import MAKER, Picture, caption_of, check_outputs, find_pictures
from inpaint_module.cli import options
from inpaint_module.cli.errors import exit_code_of
from inpaint_module.files import atomic_write
from inpaint_module.inpaint_image import inpaint_image, surroundings, trained_side
from inpaint_module.masks import MaskGenerator, preset
from inpaint_module.metrics import MaskedPSNR
from inpaint_module.metrics.scores import PLAIN_FILLS, plain_fills
from inpaint_module.pixels import to_unit_float
from inpaint_module.randomness import Stream, key
from inpaint_module.trained import image_side, load_model
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

_MAX_PIXELS = 200_000_000
_WORTH_SAYING = 2  # times that a picture is larger than what the model works at


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


@dataclass
class Predicted:
    """What was done.

    Attributes:
        bad: the pictures that were left out, each with the reason.
        total: how many were inpainted.
        empty: how many of them had an empty mask.
        shrunk: pictures filled at half their size or less: how many times larger they are, by name.
        psnr: dB in the hole of each picture, by the name of the fill; empty unless asked for.
    """

    bad: dict[Path, str]
    total: int = 0
    empty: int = 0
    shrunk: dict[str, float] = field(default_factory=dict)
    psnr: dict[str, list[float]] = field(default_factory=dict)


def predict(options: Namespace, overrides: Sequence[str], account: Account) -> Predicted:
    """Inpaint them all; results that are written stay, whatever comes after them. `account` gets what was found.

    Raises:
        ValueError: a picture that cannot be inpainted, or scores of holes whose truth nobody knows.
    """
    painted = options.preset is not None
    if options.score and not painted:
        raise ValueError(
            "--score: expected --preset, as what lies under a painted mask is known, got masks of files: what those "
            "hide is to go, and nobody knows what is right"
        )
    pictures = find_pictures(options.pictures, options.out, options.masks, painted, account)
    check_outputs(pictures, options.pictures, options.out)
    ways = {"inverted": options.inverted_masks, "transparent": options.transparent_masks}
    done = Predicted(find_bad(pictures, ways, options.skip_bad, account))
    good = [picture for picture in pictures if picture.path not in done.bad]
    module = load_model(options.config, options.checkpoint, options.steps, overrides, untrained=options.untrained)
    if options.working_side is None:
        options.working_side = image_side(options.config) or trained_side(module)
    painter = preset(options.preset or "sd")
    for picture in tqdm(good, unit="image", dynamic_ncols=True):
        try:
            given = read_given(picture.path, _MAX_PIXELS)
            mask = mask_of(picture, given.rgb.shape[:2], painter, options.seed, **ways)
            result = _inpainted(module, picture, given, mask, options, done)
        except ValueError as error:
            if not options.skip_bad:
                raise
            done.bad[picture.path] = str(error)
            continue
        done.total, done.empty = done.total + 1, done.empty + int(not mask.any())
        _write(picture.out, result, given)
    return done


def _inpainted(
    module: InpaintDiffusion, picture: Picture, given: GivenPicture, mask: Tensor, options: Namespace, done: Predicted
) -> Image.Image:
    caption = caption_of(picture, options.caption)
    sizes = {name: getattr(options, name) for name in ("tile", "overlap", "margin", "working_side")}
    sizes["blend"] = not options.no_blend
    image, mask = torch.from_numpy(given.rgb).movedim(-1, 0).to(module.device), mask.to(module.device)
    try:
        fill = inpaint_image(module, image, mask, position=picture.number, caption=caption, **sizes)
    except ValueError as error:
        raise ValueError(f"{picture.path}: {error}") from error
    region = surroundings(mask, options.working_side, options.margin)
    if region is not None and options.working_side:
        times = max(region.bottom - region.top, region.right - region.left) / options.working_side
        done.shrunk |= {picture.path.name: times} if times >= _WORTH_SAYING else {}
    if options.score and mask.any():
        _score(done, image, fill, mask)
    return filled(given, np.ascontiguousarray(fill.cpu().movedim(0, -1).numpy()), mask[0].cpu().numpy())


def _score(done: Predicted, image: Tensor, fill: Tensor, mask: Tensor) -> None:
    """Note how near the fill is to what the mask hid, and how near fills without a model are."""
    photo, hole = to_unit_float(image[None]), mask[None]
    fills = {"this model": to_unit_float(fill[None])}
    fills |= {PLAIN_FILLS[name]: made for name, made in plain_fills(photo, hole).items()}
    for name, made in fills.items():
        metric = MaskedPSNR()
        metric.update(made.cpu(), photo.cpu(), hole.cpu(), torch.ones(1))
        done.psnr.setdefault(name, []).append(float(metric.compute()))


def _write(path: Path, result: Image.Image, given: GivenPicture) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        write_png(file, result, given, MAKER)


def run(given: Namespace, overrides: Sequence[str]) -> int:
    """The command, with what `options.predict` parsed."""
    account = Account()
    done = predict(given, overrides, account)
    write_out(f"{done.total} pictures in {given.out}\n{account.left()}")
    for kind, (count, names) in account.noted.items():
        sys.stdout.write(f"{count} {kind}: {first_names(names, count)}\n")
    if done.shrunk:
        side, (name, times) = given.working_side, max(done.shrunk.items(), key=lambda each: each[1])
        sys.stdout.write(
            f"{len(done.shrunk)} with large holes: the model works at {side} pixels a side, and their fills "
            f"are enlarged up to {times:.1f} times ({name}), so they are soft\n"
        )
    if done.psnr:
        sys.stdout.write(f"PSNR in the hole, mean of {len(next(iter(done.psnr.values())))} pictures:\n")
        sys.stdout.write("".join(f"  {name:<15} {fmean(values):6.2f} dB\n" for name, values in done.psnr.items()))
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
