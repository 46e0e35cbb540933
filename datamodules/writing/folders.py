"""A folder of photos with its subfolders: which files are photos, and what lies beside each."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from datamodules.account import Account
from datamodules.decode.conversion import suffix_of, why_unread
from datamodules.shards.tar_index import HIDDEN, is_hidden
from datamodules.writing.sidecars import TWICE, MaskPlaces, masks_by_name, sort_folder

LINKED = "linked, but there already"


class FolderPhoto(NamedTuple):
    """A photo and, by purpose (txt, cls, json, mask, label, seg, target), files beside it; paths from the folder."""

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
        shown = [entry for entry in found if not is_hidden(entry.name)]
        for entry in shown:
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(folder / entry.name)
        yield folder, [entry.name for entry in shown if not entry.is_dir()]


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
