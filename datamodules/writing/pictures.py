"""What `predict` works on: pictures of a folder with masks and captions; fills put back into pictures as they were."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from datamodules.account import Account
from datamodules.decode.captions import decode_text
from datamodules.decode.conversion import CMYK, stored_picture
from datamodules.decode.profiles import UnusableProfile, colour_mode, from_srgb, profile_of
from datamodules.decode.reading import has_alpha, to_rgb, upright
from datamodules.writing.folders import find_photos, is_metadata, walk
from datamodules.writing.sidecars import MaskPlaces
from inpaint_module.files import check_replaceable

MAKER = "inpaint_module predict"


class Picture(NamedTuple):
    """A picture to inpaint.

    Attributes:
        path: the file.
        mask: its mask's file, None if it is painted.
        text: the file of its caption, if there is one.
        number: its place among all, by name.
        out: where the result goes.
        fault: why it cannot be inpainted, "" if nothing is known yet.
    """

    path: Path
    mask: Path | None
    text: Path | None
    number: int
    out: Path
    fault: str = ""


def find_pictures(folder: Path, out: Path, masks: str | None, painted: bool, account: Account) -> list[Picture]:
    """The pictures under a folder, by name, and what lies beside them, as packing finds them.

    Args:
        folder: of the pictures.
        out: of the results.
        masks: the option `--masks`, see `MaskPlaces`.
        painted: whether masks are painted, and none is looked for.
        account: counts what is left aside.

    Raises:
        ValueError: if there are none, or if two would have the same result.
    """
    names = dict(sorted(walk(folder, account))) if folder.is_dir() else {}
    places = None if masks is None or painted else MaskPlaces(masks, folder)
    found = sorted(find_photos(names, places, (), account))
    account.leave(
        "not used: tables", *(str(path / name) for path in names for name in names[path] if is_metadata(name))
    )
    if account.refused:
        raise ValueError("\n".join(account.refused))
    if not found:
        raise ValueError(
            f"{folder}: expected a folder with images, found none that can be read\n{account.left()}".rstrip()
        )
    pictures: dict[Path, Picture] = {}
    for number, (path, beside) in enumerate(found):
        target = (out / path).with_suffix(".png")
        if target in pictures:
            raise ValueError(
                f"{folder / path}: {pictures[target].path} would have the same result {target}; rename one"
            )
        place = f"{path.stem}.mask.png beside it" + (f", or by --masks {masks}" if masks else "")
        fault = f"{folder / path}: expected its mask at {place}; found none. Or give --preset"
        fault = "" if painted or "mask" in beside else fault
        mask, text = (folder / beside[kind] if kind in beside else None for kind in ("mask", "txt"))
        pictures[target] = Picture(folder / path, None if painted else mask, text, number, target, fault)
    return list(pictures.values())


def check_outputs(pictures: Sequence[Picture], folder: Path, out: Path) -> None:
    """Refuse results that would fall on a file of the user's, or that the next start would take for pictures.

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
        check_replaceable(picture.out, MAKER)


def _states(picture: Picture) -> list[os.stat_result]:
    return [path.stat() for path in (picture.path, picture.mask) if path is not None and path.exists()]


def caption_of(picture: Picture, default: str) -> str:
    """What the text beside a picture says.

    Raises:
        ValueError: naming the file.
    """
    if picture.text is None:
        return default
    try:
        return decode_text(picture.text.read_bytes()).strip()
    except ValueError as error:
        raise ValueError(f"{picture.text}: {error}") from error


ONE_WAY = "with a colour profile for reading only: converted to sRGB"
_COLOUR_CHUNKS = (b"gAMA", b"cHRM", b"cICP", b"sRGB")


class GivenPicture(NamedTuple):
    """A picture, upright.

    Attributes:
        image: its pixels as the file has them, of mode L, LA, RGB, RGBA or I;16.
        rgb: the same as training reads it, uint8 (H, W, 3) in sRGB, transparency on white.
        profile: the file's colour profile.
        chunks: what else a PNG says of its colours, name and content.
        transparent: the grey of 16 bits that is transparent.
        notes: kinds of an account.
    """

    image: Image.Image
    rgb: np.ndarray
    profile: bytes | None
    chunks: tuple[tuple[bytes, bytes], ...]
    transparent: int | None
    notes: tuple[str, ...]


def read_given(path: Path, max_pixels: int) -> GivenPicture:
    """A picture of any format that packing takes.

    Raises:
        ValueError: naming the file.
    """
    try:
        return _read(path.read_bytes(), path.name, max_pixels)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or 'cannot be read as a picture'}") from error
    except Exception as error:  # Pillow raises many kinds on damaged files, SyntaxError among them
        raise ValueError(f"{path}: {error}") from error


def _read(data: bytes, name: str, max_pixels: int) -> GivenPicture:
    stored = stored_picture(data, name, max_pixels)
    image = upright(stored.image)
    profile, notes = profile_of(image), stored.notes
    rgb = np.array(to_rgb(image))
    if image.mode == "CMYK" or _is_one_way(image):
        notes += () if CMYK in notes else (ONE_WAY,)
        return GivenPicture(_in_srgb(image), rgb, None, (), None, notes)
    key = image.info.get("transparency") if image.mode.startswith("I") else None
    return GivenPicture(_as_it_is(image), rgb, profile, _colour_chunks(stored.data), key, notes)


def _is_one_way(image: Image.Image) -> bool:
    try:
        from_srgb(Image.new("RGB", (1, 1)), profile_of(image), colour_mode(image))
    except UnusableProfile:
        return True
    return False


def _in_srgb(image: Image.Image) -> Image.Image:
    colours = to_rgb(image, None)
    if has_alpha(image):
        colours.putalpha(image.convert("RGBA").getchannel("A"))
    return colours


def _as_it_is(image: Image.Image) -> Image.Image:
    """The same pixels in a mode that holds any fill."""
    if image.mode.startswith("I"):
        return Image.fromarray(np.asarray(image).astype(np.uint16))
    mode = colour_mode(image)
    if has_alpha(image):
        mode = {"L": "LA", "RGB": "RGBA"}[mode]
    return image if image.mode == mode else image.convert(mode)


def _colour_chunks(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    found, place = [], 8
    while data.startswith(b"\x89PNG") and (name := data[place + 4 : place + 8]) not in (b"IDAT", b""):
        length = int.from_bytes(data[place : place + 4])
        if name in _COLOUR_CHUNKS:
            found.append((name, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return tuple(found)


def filled(given: GivenPicture, fill: np.ndarray, mask: np.ndarray) -> Image.Image:
    """The picture with a fill where the mask is; all other pixels have the bits of the file.

    Args:
        given: of `read_given`.
        fill: uint8 (H, W, 3) in sRGB.
        mask: bool (H, W); what it hides becomes opaque.
    """
    pixels = np.array(given.image)
    if mask.any():
        mode = "RGB" if given.image.mode.startswith("RGB") else "L"
        colours = np.asarray(from_srgb(Image.fromarray(fill), given.profile, mode))[mask]
        if pixels.dtype == np.uint16:
            levels = colours.astype(np.uint16) * 257
            pixels[mask] = np.where(levels == given.transparent, levels ^ 1, levels)
        elif given.image.mode in ("L", "RGB"):
            pixels[mask] = colours
        else:
            pixels[mask] = np.column_stack([colours, np.full(len(colours), 255, np.uint8)])
    return Image.fromarray(pixels)


def write_png(file: BinaryIO, image: Image.Image, given: GivenPicture, maker: str) -> None:
    """Write a filled picture with what its file said of its colours.

    Args:
        file: to write to.
        image: of `filled`.
        given: of `read_given`.
        maker: goes into the text chunk `Software`.
    """
    words = PngImagePlugin.PngInfo()
    words.add_text("Software", maker)
    for name, content in given.chunks:
        words.add(name, content)
    more = {} if given.transparent is None else {"transparency": given.transparent}
    image.save(file, "PNG", icc_profile=given.profile, pnginfo=words, **more)
