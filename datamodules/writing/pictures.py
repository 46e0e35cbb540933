"""What `predict` works on: the pictures of a folder, their masks and captions, and where each result goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datamodules.account import Account
from datamodules.samples.captions import decode_text
from datamodules.writing.folders import find_photos, is_metadata, walk
from datamodules.writing.mask_places import MaskPlaces
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
    """

    path: Path
    mask: Path | None
    text: Path | None
    number: int
    out: Path


def find_pictures(folder: Path, out: Path, masks: str | None, painted: bool, account: Account) -> list[Picture]:
    """The pictures under a folder, by name, and what lies beside them, as packing finds them.

    Args:
        folder: of the pictures.
        out: of the results.
        masks: the option `--masks`, see `MaskPlaces`.
        painted: whether masks are painted, and none is looked for.
        account: counts what is left aside.

    Raises:
        ValueError: if there are none, if one has no mask, or if two would have the same result.
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
        if not painted and "mask" not in beside:
            place = f"{path.stem}.mask.png beside it" + (f", or by --masks {masks}" if masks else "")
            raise ValueError(f"{folder / path}: expected its mask at {place}; found none. Or give --preset")
        mask, text = (folder / beside[kind] if kind in beside else None for kind in ("mask", "txt"))
        pictures[target] = Picture(folder / path, None if painted else mask, text, number, target)
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
