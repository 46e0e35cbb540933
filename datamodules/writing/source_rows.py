"""Rows of a table -> what each says of a picture: its place, caption, mask, class number, and more for its json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.images.conversion import is_picture, why_unread
from datamodules.writing.source_tables import Cell, Table, read_table

_IMAGE = "an image"


class Columns(NamedTuple):
    """Which columns of a table are used: for each purpose the first of these names that the table has.

    A name fits in any case, and with spaces or hyphens for underscores. `json` columns go into each sample's json,
    under their names.
    """

    image: Sequence[str] = ("path", "image", "file_name", "filename", "file_path", "image_path", "image_file", "file")
    caption: Sequence[str] = ("caption", "text", "prompt", "description", "alt_text")
    mask: Sequence[str] = ("mask", "mask_path", "mask_file_name", "mask_file", "mask_image")
    label: Sequence[str] = ("label", "cls", "class_id", "label_id")
    json: Sequence[str] = ()


class Row(NamedTuple):
    """One row: the place of the picture and of its mask, as written or in the table itself, and fields with their
    bytes; `origin` says where the row is."""

    image: str | Cell
    mask: str | Cell | None
    given: tuple[tuple[str, bytes], ...]
    origin: str


class Rows(NamedTuple):
    """The rows of a table, and the names of the columns that are not used."""

    rows: list[Row]
    unused: list[str]


def read_rows(path: Path, columns: Columns, encoding: str) -> Rows:
    """Read a table of pictures.

    Raises:
        ValueError: naming the file, and the row, if a column is missing or a value is none that it can have.
    """
    table = read_table(path, encoding)
    try:
        use = {
            purpose: _column(table, getattr(columns, purpose), Columns._field_defaults[purpose], purpose)
            for purpose in ("image", "caption", "mask", "label")
        }
        kept = [_find(table.columns, name) for name in columns.json]
        if None in kept:
            missing = [name for name, found in zip(columns.json, kept, strict=True) if found is None]
            raise ValueError(f"expected the columns {missing} for the json, got the columns {table.columns}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    rows = []
    for number, content in enumerate(table.rows, 1):
        origin = f"{path} row {number}"
        try:
            rows.append(_row(content, use, dict(zip(columns.json, map(str, kept), strict=True)), origin))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{origin}: {error}") from error
    return Rows(rows, [name for name in table.columns if name not in (*use.values(), *kept)])


def has_images(path: Path, columns: Columns, encoding: str) -> bool:
    """Whether a table has a column of pictures."""
    table = read_table(path, encoding)
    return any(_find(table.columns, name) is not None for name in columns.image)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def _find(names: Sequence[str], wanted: str) -> str | None:
    """The column of that very name, else one that differs in case, spaces or hyphens."""
    return wanted if wanted in names else next((name for name in names if _plain(name) == _plain(wanted)), None)


def _column(table: Table, names: Sequence[str], defaults: Sequence[str], purpose: str) -> str | None:
    """The first name that the table has; a name that somebody asked for must be there."""
    found = next((column for name in names if (column := _find(table.columns, name)) is not None), None)
    if found is None and names and (purpose == "image" or names != defaults):
        raise ValueError(f"expected a column {' or '.join(names)} for the {purpose}, got the columns {table.columns}")
    return found


def _text(row: dict[str, Any], column: str | None) -> str:
    value = row.get(column) if column else None
    if value is None or value != value:  # NaN stands for nothing in tables of pandas
        return ""
    if not isinstance(value, str):
        raise ValueError(f"column {column!r}: expected a text, got {type(value).__name__}")
    return value


def _label(row: dict[str, Any], column: str | None) -> bytes:
    value = row.get(column) if column else None
    if value is None or value == "" or value != value:
        return b""
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(value, bool) or not re.fullmatch("[0-9]+", str(value).strip()):
        raise ValueError(
            f"column {column!r}: expected a class number, got {value!r}; --label-column '' leaves labels out"
        )
    return str(int(value)).encode()


def _place(row: dict[str, Any], column: str | None, what: str) -> str | Cell | None:
    """The path of a picture, or the picture's cell in the table; None if there is none."""
    value = row.get(column) if column else None
    if isinstance(value, Cell):
        return value
    path = _text(row, column).strip()
    if path and not is_picture(Path(path).name) and (why_unread(path) is None or what != _IMAGE):
        raise ValueError(f"column {column!r}: expected the path of {what}, got {path!r}")
    return path or None


def _row(row: dict[str, Any], use: dict[str, str | None], json_columns: dict[str, str], origin: str) -> Row:
    image = _place(row, use["image"], _IMAGE)
    if image is None:
        raise ValueError(f"column {use['image']!r}: expected the path of an image, got ''")
    given = {"txt": _text(row, use["caption"]).encode(), "cls": _label(row, use["label"])}
    if json_columns:
        kept = {name: row.get(column) for name, column in json_columns.items()}
        given["json"] = json.dumps(kept, sort_keys=True).encode()
    return Row(
        image, _place(row, use["mask"], "a mask"), tuple((name, data) for name, data in given.items() if data), origin
    )
