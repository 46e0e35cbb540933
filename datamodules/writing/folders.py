"""A folder of photos with its subfolders: which files are photos, what lies beside each, and which `predict` takes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from datamodules.account import HIDDEN, Account, is_hidden
from datamodules.decode.conversion import suffix_of, why_unread
from datamodules.decode.fields import decode_text
from datamodules.writing.sidecars import TWICE, MaskPlaces, masks_by_name, sort_folder
from inpaint_module.files import check_replaceable

LINKED = "linked, but there already"


class FolderPhoto(NamedTuple):
    """A photo and, by purpose (as of `Sidecar`), files beside it; paths from the folder."""

    path: Path
    beside: dict[str, Path]


def walk(root: Path, account: Account) -> Iterator[tuple[Path, list[str]]]:
    """The folders under `root` and itself, each with the names of its files; paths from `root`.

    Linked folders are followed, after all real ones, but no folder is gone into twice, so that a link to a folder
    above ends nothing.

    Args:
        root: a folder.
        account: counts hidden folders and files, and folders that are linked twice; what cannot be read is refused.
    """
    seen, folders = {_identity(root)}, [Path()]
    links: list[Path] = []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        if folder != Path() and not _is_new(root / folder, seen):
            account.leave(LINKED, f"{folder}/")
            continue
        try:
            with os.scandir(root / folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            account.refused.append(f"{root / folder}: folder cannot be read: {error.strerror}")
            continue
        account.leave(
            HIDDEN, *(f"{folder / entry.name}{'/' * entry.is_dir()}" for entry in found if is_hidden(entry.name))
        )
        visible = [entry for entry in found if not is_hidden(entry.name)]
        for entry in visible:
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(folder / entry.name)
        yield folder, [entry.name for entry in visible if not entry.is_dir()]


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _is_new(folder: Path, seen: set[tuple[int, int]]) -> bool:
    try:
        identity = _identity(folder)
    except OSError:
        return True  # listing it says what is wrong
    new = identity not in seen
    seen.add(identity)
    return new


def find_photos(
    names: Mapping[Path, list[str]], masks: MaskPlaces | None, known: Collection[Path], account: Account
) -> list[FolderPhoto]:
    """The photos in the folders of `walk`.

    Args:
        names: folder -> its files.
        masks: where masks are looked for, besides NAME.mask.png.
        known: files that are masks, and no photos.
        account: counts what is left aside; not the tables called metadata.
    """
    photos = []
    claimed = set(known) if masks is None else masks.claim(names) | set(known)
    for path, pattern in masks_by_name(names, claimed).items():
        claimed.add(path)
        account.leave(f"named as a mask; --masks '{pattern}' takes such", str(path))
    for folder, files in names.items():
        here = sort_folder(files, [name for name in files if folder / name in claimed])
        for photo, beside in here.photos.items():
            found = {purpose: folder / name for purpose, name in beside.items()}
            if masks is not None and (mask := masks.of(folder / photo)) is not None:
                account.leave(TWICE, *(str(file) for purpose, file in found.items() if purpose == "mask"))
                found["mask"] = mask
            photos.append(FolderPhoto(folder / photo, found))
        for name, kind in here.left:
            account.leave(kind or why_left(name), *[str(folder / name)] * (not is_metadata(name)))
    return photos


def is_metadata(name: str) -> bool:
    """Whether a file is the table that Hugging Face's image folders have beside the images."""
    stem, _, suffix = name.lower().rpartition(".")
    return stem == "metadata" and suffix in ("jsonl", "csv", "parquet")


def why_left(name: str) -> str:
    """The kind that a file counts as which is no photo and belongs to none."""
    suffix = suffix_of(name)
    return why_unread(name) or (f"not used, ending in .{suffix}" if suffix else "not used, without an ending")


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
