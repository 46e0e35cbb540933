"""What lies beside a photo, by name: captions, masks, label maps, targets, references, class numbers, annotations.

All of it is a function of the names in one folder, in any case.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from datamodules.account import Account
from datamodules.decode.conversion import is_picture, suffix_of, why_unread

_TEXTS = {"txt": "txt", "caption": "txt", "cls": "cls", "json": "json"}
_PICTURES = ("mask", "label", "seg", "target", "reference")
_ORDER = ("txt", "png", "webp", "jpg", "jpeg")  # where several files say the same, the first of these is used
_MASK_NAMES = (
    re.compile(r"(?P<name>.+?)(?P<mark>[ ._-]masks?)[ _-]?(?P<number>\d*)", re.IGNORECASE),
    re.compile(r"(?P<mark>masks?[ ._-])(?P<name>.+)", re.IGNORECASE),
)
TWICE = "beside a photo that has another such file"
NO_PHOTO = "a mask, label map or target beside no photo"


class Sidecar(NamedTuple):
    """A file that says something of a photo: the photo's name without its suffix, and what it is.

    `purpose` is txt, instruction, cls, json, mask, label, seg, target or reference.
    """

    stem: str
    purpose: str


class Folder(NamedTuple):
    """The files of one folder: photo -> purpose -> the file beside it; and why the others are left, name and kind."""

    photos: dict[str, dict[str, str]]
    left: list[tuple[str, str]]


def folded(name: str) -> str:
    """What names have in common that differ in case, or in how an accent is written."""
    return unicodedata.normalize("NFC", name).casefold()


def stem_of(name: str) -> str:
    """`a.b.jpg` -> `a.b`."""
    return name.rpartition(".")[0] or name


def read_name(name: str) -> Sidecar | None:
    """`a.txt`, `a.instruction.txt`, `a.MASK.PNG` -> whose it is; None for any other file."""
    suffix = suffix_of(name)
    before, _, mark = stem_of(name).rpartition(".")
    if suffix == "txt" and before and mark.lower() == "instruction":
        return Sidecar(before, "instruction")
    if suffix in _TEXTS:
        return Sidecar(stem_of(name), _TEXTS[suffix])
    if before and is_picture(name) and mark.lower() in _PICTURES:
        return Sidecar(before, mark.lower())
    return None


def mask_by_name(name: str) -> tuple[str, str] | None:
    """`x_mask001.png` -> (`x`, `{name}_mask*.png`): whose mask it may be, and the pattern of such names."""
    stem = stem_of(name)
    for pattern in _MASK_NAMES if is_picture(name) else ():
        if found := pattern.fullmatch(stem):
            begin, end = found.span("name")
            rest = stem[end:].rstrip("0123456789") if "number" in found.groupdict() else ""
            return found["name"], f"{stem[:begin]}{{name}}{rest + '*' if rest else ''}{name[len(stem) :]}"
    return None


def sort_folder(names: Iterable[str], no_photos: Iterable[str] = ()) -> Folder:
    """Find the photos among the names of a folder, and what lies beside each.

    A file belongs to the photo of the same name but for the suffix, else to the one that differs only in case; of
    `a.jpg` also `a.jpg.txt`. Two photos `a.jpg` and `a.png` share what lies beside them.

    Args:
        names: files, in any order.
        no_photos: pictures among them that are something else, such as masks; they do not count as left.
    """
    names, other = sorted(names), set(no_photos)
    sidecars = {name: found for name in names if (found := read_name(name)) is not None}
    photos: dict[str, dict[str, str]] = {
        name: {} for name in names if is_picture(name) and name not in sidecars and name not in other
    }
    left = [(name, "") for name in names if name not in sidecars and name not in photos and name not in other]
    owners = _Owners(photos)
    for name in sorted(sidecars, key=lambda name: (_rank(name), name)):
        stem, purpose = sidecars[name]
        owned = owners.of(stem)
        wanted = [photo for photo in owned if purpose not in photos[photo]]
        for photo in wanted:
            photos[photo][purpose] = name
        if not wanted:
            alone = NO_PHOTO if is_picture(name) else ""
            left.append((name, alone if not owned else TWICE))
    return Folder(photos, left)


def _rank(name: str) -> tuple[int, bool, int]:
    suffix = suffix_of(name)
    place = _ORDER.index(suffix) if suffix in _ORDER else len(_ORDER)
    return place, not name.endswith(f".{suffix}"), len(name)


class _Owners:
    """Finds the photos that a file lies beside, by their names without a suffix."""

    def __init__(self, photos: Iterable[str]) -> None:
        self._exact: dict[str, list[str]] = defaultdict(list)
        self._folded: dict[str, dict[str, list[str]]] = defaultdict(dict)
        for photo in photos:
            for stem in (stem_of(photo), photo):
                self._exact[stem].append(photo)
                self._folded[folded(stem)][stem] = self._exact[stem]

    def of(self, stem: str) -> list[str]:
        if stem in self._exact:
            return self._exact[stem]
        alike = self._folded.get(folded(stem), {})
        return next(iter(alike.values())) if len(alike) == 1 else []


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

    def count_unused(self, account: Account, *, whole: bool) -> None:
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
    stems = {folder: {folded(stem_of(name)) for name in files if _is_image(name)} for folder, files in names.items()}
    found: dict[Path, str] = {}
    for folder, files in names.items():
        pictures = [name for name in files if _is_image(name) and folder / name not in claimed]
        beside = {name: mask_by_name(name) for name in pictures}
        found |= {folder / name: mask[1] for name, mask in beside.items() if mask and folded(mask[0]) in stems[folder]}
        if pattern := _of_a_mask_folder(folder, pictures, stems):
            found |= dict.fromkeys((folder / name for name in pictures), pattern)
    return {path: pattern for path, pattern in found.items() if is_picture(path.name)}


def _is_image(name: str) -> bool:
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
