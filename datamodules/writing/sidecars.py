"""What lies beside a photo, by name: captions, masks, label maps, class numbers, annotations; in any case.

All of it is a function of the names in one folder.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from datamodules.images.conversion import is_picture, suffix_of

_TEXTS = {"txt": "txt", "caption": "txt", "cls": "cls", "json": "json"}
_PICTURES = ("mask", "label", "seg", "target")
_ORDER = ("txt", "png", "webp", "jpg", "jpeg")  # where several files say the same, the first of these is used
_MASK_NAMES = (
    re.compile(r"(?P<name>.+?)(?P<mark>[ ._-]masks?)[ _-]?(?P<number>\d*)", re.IGNORECASE),
    re.compile(r"(?P<mark>masks?[ ._-])(?P<name>.+)", re.IGNORECASE),
)
TWICE = "beside a photo that has another such file"
TARGETS = "the target of a pair, which is not read"
NO_PHOTO = "a mask or label map beside no photo"


class Sidecar(NamedTuple):
    """A file that says something of a photo: the photo's name without its suffix, and what it is.

    `purpose` is txt, cls, json, mask, label, seg or target.
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
    """`a.txt`, `a.MASK.PNG` -> whose it is; None for any other file."""
    suffix = suffix_of(name)
    if suffix in _TEXTS:
        return Sidecar(stem_of(name), _TEXTS[suffix])
    stem, _, mark = stem_of(name).rpartition(".")
    if stem and is_picture(name) and mark.lower() in _PICTURES:
        return Sidecar(stem, mark.lower())
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
        no_photos: pictures among them that are something else, such as masks; they are not told as left.
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
        wanted = [photo for photo in owned if purpose not in photos[photo]] if purpose != "target" else []
        for photo in wanted:
            photos[photo][purpose] = name
        if not wanted:
            alone = NO_PHOTO if is_picture(name) else ""
            left.append((name, alone if not owned else TARGETS if purpose == "target" else TWICE))
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
