"""Tables of images: CSV, TSV, JSON lines and Parquet -> rows of named values."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple


class Table(NamedTuple):
    """A table in memory; a row may lack columns, or hold None there."""

    columns: list[str]
    rows: list[dict[str, Any]]


def _read_csv(path: Path, delimiter: str) -> Table:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file, delimiter=delimiter, strict=True) if line]
    columns = lines[0] if lines else []
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(columns):
            raise ValueError(f"row {number}: expected {len(columns)} values, got {len(line)}; quote texts with commas")
    return Table(columns, [dict(zip(columns, line, strict=True)) for line in lines[1:]])


def _read_json_lines(path: Path) -> Table:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(rows[-1], dict):
            raise ValueError(f"line {number}: expected an object, got {type(rows[-1]).__name__}")
    return Table(list(dict.fromkeys(name for row in rows for name in row)), rows)


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError("reading Parquet needs pyarrow: pip install 'inpaint-module[parquet]'") from error
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise ValueError(str(error)) from error
    return Table(table.column_names, table.to_pylist())


_READERS = {
    ".csv": lambda path: _read_csv(path, ","),
    ".tsv": lambda path: _read_csv(path, "\t"),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
}


def is_table(path: Path) -> bool:
    """Whether the file is a table, by its suffix."""
    return path.suffix.lower() in _READERS


def read_table(path: Path) -> Table:
    """Read a table whose kind its suffix tells: csv, tsv (both with a header line), jsonl, ndjson or parquet.

    Raises:
        ValueError: naming the file, and the row or line (counted from 1, without the header), if it cannot be read.
    """
    try:
        return _READERS[path.suffix.lower()](path)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: {error}") from error
