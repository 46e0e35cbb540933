"""Sources: a folder, a text file of paths, or a table of paths and captions -> images, each with its key."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.shards.tar_index import IMAGE_FIELDS, LABEL_FIELDS, MASK_FIELDS
from datamodules.writing.source_tables import Table, is_table, read_table

BESIDE = (*MASK_FIELDS, *LABEL_FIELDS, "txt", "json")  # suffixes of what may lie beside an image


class Source(NamedTuple):
    """One image on disk and the key that it will have.

    `given` holds the fields that a table gives, with their bytes, `mask` the file of the mask that it names, and
    `origin` says where the table does.
    """

    key: str
    path: Path
    given: tuple[tuple[str, bytes], ...] = ()
    mask: Path | None = None
    origin: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.path}" if self.origin else str(self.path)


class Columns(NamedTuple):
    """Which columns of a table are used: for each purpose the first of these names that the table has.

    `json` columns go into each sample's json, under their names.
    """

    image: Sequence[str] = ("path", "image", "file_name")
    caption: Sequence[str] = ("caption", "text")
    mask: Sequence[str] = ("mask",)
    label: Sequence[str] = ("label", "cls")
    json: Sequence[str] = ()


def is_image(path: Path) -> bool:
    """An image by its name; masks and label maps are not."""
    name = path.name.lower()
    return name.endswith(tuple(f".{field}" for field in IMAGE_FIELDS)) and not name.endswith(
        tuple(f".{field}" for field in MASK_FIELDS + LABEL_FIELDS)
    )


def make_key(path: str) -> str:
    """`my photos/a.b.JPG` -> `my_photos/a_b`: what a shard allows, without the dots that would end the key."""
    parts = [part for part in Path(path).with_suffix("").parts if part not in ("..", ".", os.sep)]
    return "/".join(re.sub(r"[^A-Za-z0-9_-]", "_", part) for part in parts)


def _column(table: Table, names: Sequence[str], defaults: Sequence[str], purpose: str) -> str | None:
    """The first name that the table has; a name that somebody asked for must be there."""
    found = next((name for name in names if name in table.columns), None)
    if found is None and names and (purpose == "image" or names != defaults):
        raise ValueError(f"expected a column {' or '.join(names)} for the {purpose}, got the columns {table.columns}")
    return found


def _text(row: dict[str, Any], column: str | None) -> str:
    value = row.get(column) if column else None
    if value is not None and not isinstance(value, str):
        raise ValueError(f"column {column!r}: expected a text, got {type(value).__name__}")
    return value or ""


def _label(row: dict[str, Any], column: str | None) -> bytes:
    value = row.get(column) if column else None
    if value is None or value == "":
        return b""
    if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value).strip()):
        raise ValueError(
            f"column {column!r}: expected a class number, got {value!r}; --label-column '' leaves labels out"
        )
    return str(int(value)).encode()


def _source(row: dict[str, Any], use: dict[str, str | None], json_columns: Sequence[str], folder: Path) -> Source:
    name, mask = _text(row, use["image"]), _text(row, use["mask"])
    if not is_image(Path(name)):
        raise ValueError(f"column {use['image']!r}: expected the path of an image, got {name!r}")
    if mask and Path(mask).suffix.lower()[1:] not in IMAGE_FIELDS:
        raise ValueError(f"column {use['mask']!r}: expected the path of a mask, got {mask!r}")
    given = {"txt": _text(row, use["caption"]).encode(), "cls": _label(row, use["label"])}
    if json_columns:
        given["json"] = json.dumps({column: row.get(column) for column in json_columns}, sort_keys=True).encode()
    fields = tuple((field, data) for field, data in given.items() if data)
    return Source(make_key(name), folder / name, fields, folder / mask if mask else None)


def _table_sources(path: Path, columns: Columns) -> list[Source]:
    table = read_table(path)
    try:
        use = {
            purpose: _column(table, getattr(columns, purpose), Columns._field_defaults[purpose], purpose)
            for purpose in ("image", "caption", "mask", "label")
        }
        if missing := [name for name in columns.json if name not in table.columns]:
            raise ValueError(f"expected the columns {missing} for the json, got the columns {table.columns}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    sources = []
    for number, row in enumerate(table.rows, 1):
        origin = f"{path} row {number}"
        try:
            sources.append(_source(row, use, columns.json, path.parent)._replace(origin=origin))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{origin}: {error}") from error
    return sources


def _listed_sources(path: Path) -> list[Source]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a text file that lists images: {error}") from error
    if other := [name for name in names if not is_image(Path(name))]:
        raise ValueError(f"{path}: expected names of images ({', '.join(IMAGE_FIELDS)}), got {other[:3]}")
    return [Source(make_key(name), path.parent / name) for name in names]


def _folder_sources(folder: Path) -> list[Source]:
    names = [path.relative_to(folder) for path in folder.rglob("*") if is_image(path)]
    return [Source(make_key(str(name)), folder / name) for name in names]


def find_sources(source: str | Path, columns: Columns = Columns()) -> list[Source]:  # noqa: B008, immutable
    """The images under a folder, or those that a text file or a table lists, by key.

    Args:
        source: a folder, searched with its subfolders; a text file with one path a line; or a table (csv, tsv, jsonl,
            ndjson, parquet). Paths are relative to the list's folder.
        columns: which columns of a table are used.

    Raises:
        ValueError: if there are none, if two would have the same key, or if a list cannot be read.
    """
    source = Path(source)
    if source.is_dir():
        found = _folder_sources(source)
    elif source.is_file():
        found = _table_sources(source, columns) if is_table(source) else _listed_sources(source)
    else:
        raise ValueError(f"{source}: expected a folder of images or a file that lists them, found neither")
    if not found:
        raise ValueError(f"{source}: no images ({', '.join(IMAGE_FIELDS)}) there")
    images: dict[str, Source] = {}
    for image in sorted(found, key=lambda image: str(image.path)):
        if image.key in images:
            raise ValueError(f"{image}: same key as {images[image.key]}: {image.key!r}; rename one")
        images[image.key] = image
    return [images[key] for key in sorted(images)]


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


def fingerprint(sources: Iterable[Source]) -> str:
    """sha256 over every source's key, given fields, and the names, sizes and times of its files."""
    _listing.cache_clear()
    digest = hashlib.sha256()
    for source in sources:
        files = [source.path, *(source.path.with_suffix(f".{name}") for name in BESIDE)]
        states = [(path.name, _state(path)) for path in [*files, *([source.mask] if source.mask else [])]]
        digest.update(repr((source.key, source.given, states)).encode())
    return digest.hexdigest()
