"""Masks that lie elsewhere than in NAME.mask.png: where `--masks` says, and pictures that look like masks by name."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from datamodules.account import Account
from datamodules.images.conversion import is_picture, why_unread
from datamodules.writing.sidecars import NO_PHOTO, folded, mask_by_name, read_name, stem_of

_NAME = "{name}"
_MASK_FOLDER = re.compile(r"(.+[ ._-])?masks?([ ._-].+)?", re.IGNORECASE)
SPARE = "a further mask of a photo: one is used"


def list_names(folder: Path) -> list[str]:
    """The names of a folder's files, sorted; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir())
    except OSError:
        return []


class MaskPlaces:
    """Finds the masks of photos by the option `--masks`.

    Args:
        option: a pattern for the files' names, from each photo's folder, such as `{name}_mask*.png`,
            `masks/{name}.png` or `../masks/{name}.png`, in any case; or a folder that holds, as the photos' own does,
            a mask of each photo's name. The first file that fits is the mask.
        root: the folder that the photos' paths start from.

    Raises:
        ValueError: if it is neither.
    """

    def __init__(self, option: str, root: Path) -> None:
        self.root = root
        inside = os.path.isdir(option)
        self.folder = Path(os.path.relpath(os.path.realpath(option), os.path.realpath(root))) if inside else None
        self._below, _, file = option.rpartition("/")
        if self.folder is None and (file.count(_NAME) != 1 or _NAME in self._below):
            raise ValueError(
                f"masks: expected a folder, or a pattern with {_NAME} for the photo's name, such as "
                f"'{_NAME}_mask*.png' or 'masks/{_NAME}.png', got {option!r}"
            )
        before, _, after = (_NAME if self.folder else file).partition(_NAME)
        rest = [_wild(before), _wild(after) if self.folder is None else r"\.[^.]+"]
        greedy = [re.compile(name.join(rest), re.IGNORECASE) for name in ("(.+)", "(.+?)")]
        self._patterns = greedy if "*" in after else greedy[:1]
        self._indexes: dict[Path, dict[str, list[Path]]] = {}
        self._used: set[Path] = set()
        self._spare: set[Path] = set()

    def _place(self, folder: Path) -> Path:
        """Where the masks of a folder's photos are; paths from the root."""
        if self.folder is None:
            return Path(os.path.normpath(folder / self._below))
        mirrored = not folder.is_absolute() and (self.root / self.folder / folder).is_dir()
        return self.folder / folder if mirrored else self.folder

    def _index(self, place: Path) -> dict[str, list[Path]]:
        """Folded name of a photo -> its masks in this place."""
        if place not in self._indexes:
            index = self._indexes[place] = {}
            for name in list_names(self.root / place):
                found = {pattern.fullmatch(name) for pattern in self._patterns if is_picture(name)}
                for stem in sorted({folded(match[1]) for match in found if match}):
                    index.setdefault(stem, []).append(place / name)
        return self._indexes[place]

    def claim(self, names: Mapping[Path, list[str]]) -> set[Path]:
        """All files of these folders that the option speaks of: they are no photos themselves."""
        found = {path for folder in names for paths in self._index(self._place(folder)).values() for path in paths}
        within = [folder for folder in names if self.folder is not None and self.folder in (folder, *folder.parents)]
        return found | {folder / name for folder in within for name in names[folder] if is_picture(name)}

    def of(self, photo: Path) -> Path | None:
        """The mask of a photo, from the root; None if it has none."""
        found = self._index(self._place(photo.parent)).get(folded(stem_of(photo.name)), [])
        self._used.update(found[:1])
        self._spare.update(found[1:])
        return found[0] if found else None

    def tell(self, account: Account, *, whole: bool) -> None:
        """Count the masks that were not used; if photos of the `whole` folder were asked for, also those of none.

        Raises:
            ValueError: if none was: then the option is not what was meant.
        """
        if not self._used:
            raise ValueError(f"masks: expected a mask of at least one photo, found none; the photos are in {self.root}")
        every = {path for index in self._indexes.values() for paths in index.values() for path in paths}
        account.leave(SPARE, *map(str, sorted(self._spare - self._used)))
        account.leave(NO_PHOTO, *map(str, sorted(every - self._spare - self._used) if whole else ()))


def _wild(text: str) -> str:
    return re.escape(text).replace(r"\*", ".*").replace(r"\?", ".")


def masks_by_name(names: Mapping[Path, list[str]], claimed: Collection[Path]) -> dict[Path, str]:
    """Pictures that are masks of others by their names -> the pattern for `--masks` that takes them.

    They are `x_mask.png`, `x_mask001.png`, `mask_x.png` beside a picture `x`, and all in a folder called masks of which
    one has the name of a picture in the folder above or in one beside.

    Args:
        names: folder -> its files.
        claimed: files that are known to be masks.
    """
    stems = {folder: {folded(stem_of(name)) for name in files if _shows(name)} for folder, files in names.items()}
    found: dict[Path, str] = {}
    for folder, files in names.items():
        pictures = [name for name in files if _shows(name) and folder / name not in claimed]
        beside = {name: mask_by_name(name) for name in pictures}
        found |= {folder / name: mask[1] for name, mask in beside.items() if mask and folded(mask[0]) in stems[folder]}
        if pattern := _of_a_mask_folder(folder, pictures, stems):
            found |= dict.fromkeys((folder / name for name in pictures), pattern)
    return {path: pattern for path, pattern in found.items() if is_picture(path.name)}


def _shows(name: str) -> bool:
    """A picture, read here or not, that is no sidecar."""
    return (is_picture(name) or why_unread(name) is not None) and read_name(name) is None


def _of_a_mask_folder(folder: Path, pictures: list[str], stems: Mapping[Path, set[str]]) -> str | None:
    """The pattern of the masks in a folder that is called so, or lies in one; None if they are no masks."""
    part = next((number for number, name in enumerate(folder.parts) if _MASK_FOLDER.fullmatch(name)), None)
    if part is None:
        return None
    above, below = folder.parts[:part], folder.parts[part + 1 :]
    partners = [other for other in stems if other.parts[:part] == above and other.parts[part + 1 :] == below]
    partners = [other for other in [Path(*above), *partners] if other in stems and other != folder]
    for name in pictures:
        stem = stem_of(name)
        for own, pattern in filter(None, (mask_by_name(name), (stem, _NAME + name[len(stem) :]))):
            for partner in partners:
                if folded(own) in stems[partner]:
                    return f"{os.path.relpath(folder, partner)}/{pattern}"
    return None
