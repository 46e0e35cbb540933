"""Tables of images (CSV, TSV, JSON lines, Parquet) -> what each row says of a picture: its place, caption, mask ..."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.decode.conversion import is_picture, why_unread
from datamodules.decode.fields import decode_text
from inpaint_module.parsing import parse_json

_BYTES = "bytes"  # of Hugging Face's image columns, struct<bytes: binary, path: string>


class Table(NamedTuple):
    """A table in memory; a row may lack columns, or hold None there."""

    columns: list[str]
    rows: list[dict[str, Any]]


class Cell(NamedTuple):
    """A picture that lies in a Parquet table itself: its row there, from 0, and its file's name if it has one."""

    table: Path
    row: int
    column: str
    name: str

    def __str__(self) -> str:
        return f"{self.table} row {self.row + 1}: column {self.column!r}"

    def read(self) -> bytes:
        """The picture's file.

        Raises:
            ValueError: if this row has none.
        """
        from pyarrow import parquet

        row, group, layout = self.row, 0, parquet.read_metadata(self.table)
        while row >= layout.row_group(group).num_rows:
            row, group = row - layout.row_group(group).num_rows, group + 1
        value = _read_group(self.table, group, self.column)[row].as_py()
        data = value.get(_BYTES) if isinstance(value, dict) else value
        file = self.table.parent / self.name
        if not data and not (self.name and file.is_file()):
            raise ValueError("expected the bytes of a picture, got none")
        return bytes(data) if data else file.read_bytes()


@lru_cache(maxsize=2)  # rows come in their order, of one or two columns
def _read_group(path: Path, group: int, column: str) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(0)


def _read_csv(path: Path, delimiter: str, encoding: str) -> Table:
    text = decode_text(path.read_bytes(), encoding)
    head = text.partition("\n")[0]
    delimiter = ";" if delimiter not in head and ";" in head else delimiter  # of spreadsheets where a comma is decimal
    lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if line]
    columns = [name.strip() for name in lines[0]] if lines else []
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(columns):
            raise ValueError(f"row {number}: expected {len(columns)} values, got {len(line)}; quote texts with commas")
    return Table(columns, [dict(zip(columns, line, strict=True)) for line in lines[1:]])


def _read_json_lines(path: Path, encoding: str) -> Table:
    rows = []
    for number, line in enumerate(decode_text(path.read_bytes(), encoding).split("\n"), 1):
        if not line.strip():
            continue
        rows.append(parse_json(line, f"line {number}", strict=False).value)
        if not isinstance(rows[-1], dict):
            raise ValueError(f"line {number}: expected an object, got {type(rows[-1]).__name__}")
    return Table(list(dict.fromkeys(name for row in rows for name in row)), rows)


def _read_parquet(path: Path) -> Table:
    """All but the pictures in it, which stay where they are until they are wanted."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError("reading Parquet needs pyarrow: pip install 'inpaint-module[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            pictures = [field.name for field in file.schema_arrow if _holds_pictures(field.type)]
            paths = [f"{name}.path" for name in pictures if _has_paths(file.schema_arrow.field(name).type)]
            plain = [name for name in file.schema_arrow.names if name not in pictures]
            names, rows = file.schema_arrow.names, file.read(columns=[*plain, *paths]).to_pylist()
            rows = rows or [{} for _ in range(file.metadata.num_rows)]
    except ArrowException as error:
        raise ValueError(str(error)) from error
    for number, row in enumerate(rows):
        for name in pictures:
            row[name] = Cell(path, number, name, (row.get(name) or {}).get("path") or "")
    return Table(names, rows)


def _holds_pictures(kind: Any) -> bool:
    """Whether a column is of bytes, or of structs with bytes."""
    from pyarrow import types

    if types.is_struct(kind):
        parts = {kind.field(number).name: kind.field(number).type for number in range(kind.num_fields)}
        return _BYTES in parts and _holds_pictures(parts[_BYTES])
    return types.is_binary(kind) or types.is_large_binary(kind)


def _has_paths(kind: Any) -> bool:
    from pyarrow import types

    return types.is_struct(kind) and any(kind.field(number).name == "path" for number in range(kind.num_fields))


_READERS = {
    ".csv": lambda path, encoding: _read_csv(path, ",", encoding),
    ".tsv": lambda path, encoding: _read_csv(path, "\t", encoding),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": lambda path, encoding: _read_parquet(path),
}


def is_table(path: Path) -> bool:
    """Whether the file is a table, by its suffix."""
    return path.suffix.lower() in _READERS


def read_table(path: Path, encoding: str = "utf-8") -> Table:
    """Read a table whose suffix says its kind: csv, tsv (both with a header line), jsonl, ndjson or parquet.

    A Parquet column of pictures, binary or Hugging Face's struct of bytes and path, comes as a `Cell` in each row.

    Args:
        path: the file.
        encoding: of its text, unless a byte-order mark says another.

    Raises:
        ValueError: naming the file, and the row or line (counted from 1, without the header), if it cannot be read.
    """
    try:
        return _READERS[path.suffix.lower()](path, encoding)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error


def _beside(purpose: str) -> tuple[str, ...]:
    """The names of a column of pictures that belong to the image."""
    return (purpose, *(f"{purpose}_{end}" for end in ("path", "file_name", "file", "image")))


class Columns(NamedTuple):
    """Which columns of a table are used: for each purpose the first of these names that the table has.

    A name fits in any case, and with spaces or hyphens for underscores. `json` columns go into each sample's json,
    under their names.
    """

    image: Sequence[str] = ("path", "image", "file_name", "filename", "file_path", "image_path", "image_file", "file")
    caption: Sequence[str] = ("caption", "text", "prompt", "description", "alt_text")
    mask: Sequence[str] = _beside("mask")
    label: Sequence[str] = ("label", "cls", "class_id", "label_id")
    target: Sequence[str] = _beside("target")
    instruction: Sequence[str] = ("instruction", "edit_instruction", "edit_prompt")
    reference: Sequence[str] = _beside("reference")
    json: Sequence[str] = ()


PURPOSES = ("image", "caption", "mask", "label", "target", "instruction", "reference")


class Row(NamedTuple):
    """One row: the place of the picture, and by purpose (mask, target, reference) those of what belongs to it, as
    written or in the table itself; fields with their bytes; `origin` says where the row is."""

    image: str | Cell
    beside: dict[str, str | Cell]
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
            for purpose in PURPOSES
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
    columns_there = read_table(path, encoding).columns
    return any(_find(columns_there, name) is not None for name in columns.image)


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
        got = type(value).__name__ + _advice(_plain(str(column)))
        raise ValueError(f"column {column!r}: expected a text, got {got}")
    return value


def _advice(purpose: str) -> str:
    """How to leave out a column that is often something else, such as a class."""
    return f"; --{purpose}-column '' leaves {purpose}s out" if purpose in ("target", "reference") else ""


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
    if column and isinstance(value := row.get(column), Cell):
        return value
    path = _text(row, column).strip()
    if path and not is_picture(Path(path).name) and (why_unread(path) is None or what != "an image"):
        got = f"{path!r}{_advice(what.removeprefix('a '))}"
        raise ValueError(f"column {column!r}: expected the path of {what}, got {got}")
    return path or None


def _row(row: dict[str, Any], use: dict[str, str | None], json_columns: dict[str, str], origin: str) -> Row:
    image = _place(row, use["image"], "an image")
    if image is None:
        raise ValueError(f"column {use['image']!r}: expected the path of an image, got ''")
    given = {"txt": _text(row, use["caption"]).encode(), "cls": _label(row, use["label"])}
    given["instruction.txt"] = _text(row, use["instruction"]).encode()
    if json_columns:
        kept = {name: row.get(column) for name, column in json_columns.items()}
        given["json"] = json.dumps(kept, sort_keys=True).encode()
    beside = {purpose: _place(row, use[purpose], f"a {purpose}") for purpose in ("mask", "target", "reference")}
    places = {purpose: place for purpose, place in beside.items() if place is not None}
    return Row(image, places, tuple((name, data) for name, data in given.items() if data), origin)
