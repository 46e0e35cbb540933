"""What the benchmarks print: Markdown, each line as soon as it is known."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def write(text: str) -> None:
    """Print a text as it is, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def table(title: str, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table, each row as soon as it is there; numbers with a point get four digits, all else is as it is."""
    names = list(header)
    write(f"\n## {title}\n\n| {' | '.join(names)} |\n|{'---|' * len(names)}\n")
    for row in rows:
        write(f"| {' | '.join(f'{cell:.4g}' if isinstance(cell, float) else str(cell) for cell in row)} |\n")
