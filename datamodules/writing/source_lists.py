"""Sources: a folder, a text file of paths, or a table of paths and captions -> images, each with its key."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.account import Account
from datamodules.decode.conversion import is_picture, why_unread
from datamodules.decode.fields import decode_text
from datamodules.writing.folders import find_photos, is_metadata, walk, why_left
from datamodules.writing.sidecars import MaskPlaces, folded, list_names, sort_folder
from datamodules.writing.source_tables import Cell, Columns, Row, has_images, is_table, read_rows

SAME_NAME = "with the key of another: a mark was added to it"
UNUSED_COLUMNS = "as a column that is not used"
NOT_THERE = "named in a table of the folder, but not there"


class Source(NamedTuple):
    """One image and the key that it will have.

    Attributes:
        key: of the sample.
        path: the file, or the cell of a table that holds it.
        beside: purpose (txt, instruction, cls, json, mask, label, seg, target, reference) -> file beside it, or cell.
        given: fields that a table gives, with their bytes; they win.
        origin: where the table says it.
        name: what an account calls it.
    """

    key: str
    path: Path | Cell
    beside: tuple[tuple[str, Path | Cell], ...] = ()
    given: tuple[tuple[str, bytes], ...] = ()
    origin: str = ""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.path}" if self.origin and isinstance(self.path, Path) else str(self.path)


def make_key(path: str) -> str:
    """`my photos/Größe.b.JPG` -> `my_photos/Größe_b`: letters and numbers of any language, and no dots.

    A dot would end the key; all else but - and _ becomes _.
    """
    parts = [part for part in Path(path).with_suffix("").parts if part not in ("..", ".", os.sep)]
    return "/".join("".join(map(_key_letter, unicodedata.normalize("NFC", part))) for part in parts)


def _key_letter(letter: str) -> str:
    kept = re.match("[A-Za-z0-9_-]", letter) or (ord(letter) > 127 and unicodedata.category(letter)[0] in "LMN")
    return letter if kept else "_"


def _unique(sources: list[Source], account: Account) -> list[Source]:
    """Sources by key, each with its own.

    Of several with one key the one keeps it whose name it is; the others get a mark that depends on their own name and
    row alone.
    """
    counts, kept, marked = Counter(source.key for source in sources), set(), []
    for source in sorted(sources, key=lambda source: (source.name, source.origin)):
        exact = source.key == os.path.splitext(source.name)[0] and source.key not in kept
        if counts[source.key] > 1 and not exact:
            account.note(SAME_NAME, source.name)
            source = source._replace(key=f"{source.key}_{_mark(source)}")
        kept.add(source.key)
        marked.append(source)
    return sorted(marked, key=lambda source: source.key)


def _mark(source: Source) -> str:
    return hashlib.sha256(f"{source.name}\n{source.origin}".encode(errors="surrogateescape")).hexdigest()[:8]


@lru_cache(maxsize=4)  # lists go folder by folder
def _folder(folder: Path) -> tuple[dict[str, dict[str, str]], dict[str, list[str]]]:
    """What lies beside each photo of a folder, and the names of its files that differ in case or accents alone."""
    alike: dict[str, list[str]] = {}
    for name in list_names(folder):
        alike.setdefault(folded(name), []).append(name)
    return sort_folder(list_names(folder)).photos, alike


def _found(path: Path) -> Path:
    """The file of this name, or the only one whose name differs in case or accents alone."""
    alike = _folder(path.parent)[1].get(folded(path.name), [])
    return path.with_name(alike[0]) if len(alike) == 1 else path


class _Finder:
    """Finds sources; `root` is the folder that paths start from."""

    def __init__(self, root: Path, columns: Columns, masks: str | None, encoding: str, account: Account) -> None:
        self.root, self.columns, self.encoding, self.account = root, columns, encoding, account
        self.masks = None if masks is None else MaskPlaces(masks, root)

    def file(self, name: str, **more: Any) -> Source:
        """A photo that a list or a table names, with what lies beside it."""
        path = _found(self.root / name)
        if "\\" in name and not path.exists():  # of a list made on Windows
            name = name.replace("\\", "/")
            path = _found(self.root / name)
        beside: dict[str, Path | Cell] = {
            purpose: path.with_name(file) for purpose, file in _folder(path.parent)[0].get(path.name, {}).items()
        }
        if self.masks is not None and (mask := self.masks.of(Path(name))) is not None:
            beside["mask"] = self.root / mask
        return Source(make_key(name), path, tuple(beside.items()), name=name, **more)

    def listed(self, path: Path) -> list[Source]:
        """The photos of a text file with one path a line."""
        try:
            lines = decode_text(path.read_bytes(), self.encoding).splitlines()
        except ValueError as error:
            raise ValueError(f"{path}: expected a text file that lists images: {error}") from error
        names = [line.strip() for line in lines if line.strip()]
        if other := [name for name in names if not is_picture(name) and why_unread(name) is None]:
            raise ValueError(f"{path}: expected names of images, got {other[:3]}")
        twice = [name for name, count in Counter(names).items() for _ in range(count - 1)]
        self.account.leave("listed more than once", *twice)
        for name in names:
            self.account.leave(why_unread(name) or "", *[name] * (why_unread(name) is not None))
        return [self.file(name) for name in dict.fromkeys(names) if is_picture(name)]

    def table(self, path: Path) -> list[Source]:
        """The photos of a table."""
        rows, unused = read_rows(path, self.columns, self.encoding)
        self.account.note(UNUSED_COLUMNS, *unused)
        unread = {number: why for number, row in enumerate(rows) if (why := why_unread(str(row.image)))}
        for number, why in unread.items():
            self.account.leave(why, str(rows[number].image))
        return [self.row(path, number, row) for number, row in enumerate(rows) if number not in unread]

    def row(self, table: Path, number: int, row: Row) -> Source:
        """The photo of one row."""
        if isinstance(row.image, Cell):
            name = make_key(row.image.name).rpartition("/")[2] if row.image.name else ""
            key = f"{make_key(table.name)}/{number:08d}{'_' * bool(name)}{name}"
            source = Source(key, row.image, (), row.given, row.origin, f"row {number + 1}")
        else:
            source = self.file(row.image, given=row.given, origin=row.origin)
        return self.with_files(source, row)

    def with_files(self, source: Source, row: Row) -> Source:
        """The source with the mask and the target that a row names."""
        places = {what: at if isinstance(at, Cell) else _found(self.root / at) for what, at in row.beside.items()}
        return source._replace(beside=tuple({**dict(source.beside), **places}.items()))

    def folder(self) -> list[Source]:
        """The photos under the root, with what tables called metadata say of them."""
        names = dict(sorted(walk(self.root, self.account)))
        rows_by_name = self.metadata(names)
        known = [Path(file) for row in rows_by_name.values() for file in row.beside.values() if isinstance(file, str)]
        sources = {}
        for path, beside in find_photos(names, self.masks, known, self.account):
            files = tuple((purpose, self.root / file) for purpose, file in beside.items())
            sources[str(path)] = Source(make_key(str(path)), self.root / path, files, name=str(path))
        for name in _alike(sources, rows_by_name):
            row = rows_by_name.pop(name[1])
            source = sources[name[0]]._replace(given=row.given, origin=row.origin)
            sources[name[0]] = self.with_files(source, row)
        self.account.leave(NOT_THERE, *rows_by_name)
        return list(sources.values())

    def metadata(self, names: dict[Path, list[str]]) -> dict[str, Row]:
        """The rows of tables called metadata, by the photo's path from the root; their files likewise from there."""
        rows_by_name: dict[str, Row] = {}
        for table in [folder / name for folder, files in names.items() for name in files if is_metadata(name)]:
            if not has_images(self.root / table, self.columns, self.encoding):
                self.account.leave(why_left(table.name), str(table))
                continue
            rows, unused = read_rows(self.root / table, self.columns, self.encoding)
            self.account.note(UNUSED_COLUMNS, *unused)
            for row in rows:
                name = os.path.normpath(table.parent / str(row.image))
                files = {
                    what: os.path.normpath(table.parent / file) if isinstance(file, str) else file
                    for what, file in row.beside.items()
                }
                self.account.leave("further rows of a photo", *[name] * (name in rows_by_name))
                rows_by_name.setdefault(name, row._replace(beside=files))
        return rows_by_name


def _alike(ours: Iterable[str], theirs: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of the same name, or of the only two left that differ in case or accents alone."""
    theirs = set(theirs)
    same = [name for name in ours if name in theirs]
    left: dict[str, tuple[list[str], list[str]]] = {}
    for side, names in enumerate((set(ours).difference(same), theirs.difference(same))):
        for name in names:
            left.setdefault(folded(name), ([], []))[side].append(name)
    alike = [(mine[0], other[0]) for mine, other in left.values() if len(mine) == len(other) == 1]
    return [*((name, name) for name in same), *alike]


def find_sources(
    source: str | Path,
    columns: Columns = Columns(),  # noqa: B008, immutable
    *,
    masks: str | None = None,
    encoding: str = "utf-8",
    account: Account | None = None,
) -> list[Source]:
    """The images under a folder, or those that a text file or a table lists, by key.

    Args:
        source: a folder, searched with its subfolders; a text file with one path a line; or a table (csv, tsv, jsonl,
            ndjson, parquet). Paths are relative to the list's folder.
        columns: which columns of a table are used.
        masks: where masks are besides NAME.mask.png, see `MaskPlaces`.
        encoding: of lists and tables without a byte-order mark.
        account: counts what is left aside, and why.

    Raises:
        ValueError: if there are none, or if a list cannot be read.
    """
    source, account = Path(source), Account() if account is None else account
    _folder.cache_clear()
    finder = _Finder(source if source.is_dir() else source.parent, columns, masks, encoding, account)
    if source.is_dir():
        found = finder.folder()
    elif source.is_file() and not is_picture(source.name):
        found = finder.table(source) if is_table(source) else finder.listed(source)
    else:
        raise ValueError(
            f"{source}: expected a folder of images, or a text file or table that lists them, "
            f"got {'one picture' if source.is_file() else 'none of these'}"
        )
    if finder.masks is not None:
        finder.masks.count_unused(account, whole=source.is_dir())
    if not found:
        tables = [name for _, names in account.aside.values() for name in names if is_table(Path(name))]
        advice = f"; to take those of a table, name it: {source / tables[0]}" if tables else ""
        raise ValueError(f"{source}: no images that can be read there{advice}\n{account.text()}")
    return _unique(found, account)


@lru_cache(maxsize=4)  # sources come by key, and so folder by folder
def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    with os.scandir(folder) as entries:
        states = ((entry.name, entry.stat()) for entry in entries if entry.is_file())
        return {name: (state.st_size, state.st_mtime_ns) for name, state in states}


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, None if it is missing."""
    try:
        return _listing(path.parent).get(path.name)
    except OSError:
        return None


def file_states(sources: Iterable[Source]) -> dict[Path, tuple[int, int]]:
    """Size in bytes and time, in ns since 1970, of each file of the sources that is there."""
    _listing.cache_clear()
    places = {place for source in sources for place in (source.path, *dict(source.beside).values())}
    paths = sorted(place for place in places if isinstance(place, Path))
    return {path: state for path in paths if (state := _state(path)) is not None}


def fingerprint(sources: Iterable[Source]) -> str:
    """sha256 over every source's key, given fields, and the names, sizes and times of its files."""
    _listing.cache_clear()
    digest = hashlib.sha256()
    for source in sources:
        places = [("", source.path), *source.beside]
        files = [(purpose, place.table if isinstance(place, Cell) else place) for purpose, place in places]
        states = [(purpose, path.name, _state(path)) for purpose, path in files]
        digest.update(repr((source.key, source.given, states)).encode())
    return digest.hexdigest()
