"""Parsing: JSON that is not trusted, checked value by value; an error names file, field, what was expected and came.
Likewise the numbers of a config.

Own code in place of a schema library: what is read here is a handful of fields, and none of the libraries refuses
a key that stands twice, a number too large for a float and a nesting too deep for the stack.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from inpaint_module.files import redact, redacted

LARGEST = 2**63 - 1
MAX_BYTES = 1 << 28
_PLAIN = re.compile(r"[\w.-]{1,60}")
_SHOWN = 80  # characters of a value, in errors


class Parsed:
    """A value and where it stands: `parsed["shards"].items()[3]["count"].whole()`.

    Args:
        value: as json gives it.
        origin: what errors call the file.
        field: what they call the place in it, such as `shards[3].count`; empty for the whole.
        advice: what to do, at the end of errors.
    """

    __slots__ = ("advice", "field", "origin", "value")

    def __init__(self, value: Any, origin: str, field: str = "", advice: str = "") -> None:
        self.value, self.origin, self.field, self.advice = value, origin, field, advice

    def refuse(self, expected: str, got: str | None = None) -> ValueError:
        """The error to raise; `got` stands for the value where that says more."""
        came = _short(self.value) if got is None else got
        advice = f"; {self.advice}" if self.advice else ""
        place = f"{self.field}: " if self.field else ""
        return ValueError(redact(f"{self.origin}: {place}expected {expected}, got {came}{advice}"))

    def part(self, value: Any, name: str | int) -> Parsed:
        """A value that stands in this one, at a name or a number: for those who check many values by themselves."""
        plain = isinstance(name, str) and _PLAIN.fullmatch(name)
        text = f".{name}" if plain and self.field else f"{name}" if plain else f"[{_short(name)}]"
        return Parsed(value, self.origin, self.field + text, self.advice)

    def __getitem__(self, name: str) -> Parsed:
        """A member of an object.

        Raises:
            ValueError: if this is no object, or has no such member.
        """
        found = self.get(name)
        if found is None:
            raise self.part(None, name).refuse("a value", "none")
        return found

    def get(self, name: str) -> Parsed | None:
        """A member of an object; None if there is none, or null.

        Raises:
            ValueError: if this is no object.
        """
        if not isinstance(self.value, dict):
            raise self.refuse("an object")
        return None if self.value.get(name) is None else self.part(self.value[name], name)

    def members(self) -> dict[str, Parsed]:
        """All members of an object, null among them.

        Raises:
            ValueError: if this is no object.
        """
        if not isinstance(self.value, dict):
            raise self.refuse("an object")
        return {name: self.part(value, name) for name, value in self.value.items()}

    def items(self, count: int | None = None) -> list[Parsed]:
        """All of a list.

        Args:
            count: how many there must be; None for any number.

        Raises:
            ValueError: if this is no list, or has another length.
        """
        if not isinstance(self.value, list) or (count is not None and len(self.value) != count):
            expected = "a list" if count is None else f"a list of {count}"
            raise self.refuse(expected, f"{len(self.value)}" if isinstance(self.value, list) else None)
        return [self.part(value, number) for number, value in enumerate(self.value)]

    def whole(self, low: int = 0, high: int = LARGEST) -> int:
        """A whole number from `low` to `high`; true is none, nor is 1.0.

        Raises:
            ValueError: if this is none.
        """
        if type(self.value) is not int or not low <= self.value <= high:
            raise self.refuse(f"a whole number from {low} to {high}")
        return self.value

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """A finite number from `low` to `high`; true is none.

        Raises:
            ValueError: if this is none.
        """
        given = type(self.value) in (int, float) and abs(self.value) < 1e300
        if not given or not low <= self.value <= high:
            limits = "" if (low, high) == (-math.inf, math.inf) else f" from {low:g} to {high:g}"
            raise self.refuse(f"a number{limits}")
        return float(self.value)

    def flag(self) -> bool:
        """True or false.

        Raises:
            ValueError: if this is neither.
        """
        if not isinstance(self.value, bool):
            raise self.refuse("true or false")
        return self.value

    def text(self, pattern: re.Pattern[str] | None = None, expected: str = "a text") -> str:
        """A text that UTF-8 can hold.

        Args:
            pattern: what the whole of it must match.
            expected: that in words.

        Raises:
            ValueError: if this is none.
        """
        good = isinstance(self.value, str) and (pattern is None or pattern.fullmatch(self.value) is not None)
        if not good or any("\ud800" <= letter <= "\udfff" for letter in self.value if not self.value.isascii()):
            raise self.refuse(expected)
        return self.value


def parse_json(
    data: bytes | str, origin: str, *, advice: str = "", max_bytes: int = MAX_BYTES, strict: bool = True
) -> Parsed:
    """JSON of any of its encodings, with or without a byte-order mark.

    Args:
        data: of the file.
        origin: what errors call the file.
        advice: what to do, at the end of errors.
        max_bytes: refuse more; a parsed text takes many times its room.
        strict: false for files that other programs have made, which write NaN, and of names that stand twice the last.

    Raises:
        ValueError: naming the file, if it is too large, no JSON, nested too deep or, if strict, holds a name twice in
            one object, or a number that is none or too large.
    """
    whole = Parsed(data, origin, advice=advice)
    if len(data) > max_bytes:
        raise whole.refuse(f"at most {max_bytes} bytes of JSON", f"{len(data)}")
    try:
        text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
        value = json.loads(text.removeprefix("\ufeff"), **(_STRICT if strict else {}))
    except (RecursionError, MemoryError) as error:
        raise whole.refuse("JSON", "one nested too deep, or too large") from error
    except ValueError as error:
        raise whole.refuse("JSON", f"{error}") from error
    return Parsed(value, origin, advice=advice)


def read_json(path: Path, *, advice: str = "", max_bytes: int = MAX_BYTES) -> Parsed:
    """A JSON file, as `parse_json`.

    Raises:
        ValueError: as there.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return parse_json(file.read(max_bytes + 1), str(path), advice=advice, max_bytes=max_bytes)


def parse_json_lines(data: bytes | str, origin: str, *, advice: str = "") -> Iterator[Parsed]:
    """The objects of a file with one a line; errors name the line, and empty lines are none.

    Raises:
        ValueError: as `parse_json`.
    """
    lines: Sequence[bytes | str] = data.split("\n") if isinstance(data, str) else data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield parse_json(line, f"{origin}, line {number}", advice=advice)


def check_at_least(low: int, part: str, **values: float) -> None:
    """Refuse numbers under `low`, naming the argument of this part of a config, such as `data.order`."""
    for name, value in values.items():
        if value < low:
            raise ValueError(f"{part}.{name}: expected at least {low}, got {value}")


def check_share(part: str, **values: float) -> None:
    """Refuse numbers outside 0..1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{part}.{name}: expected 0 to 1, got {value}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number]))
        raise ValueError(f"the name {_short(twice)} twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]}, which is too large")
    return value


_STRICT: dict[str, Any] = {
    "object_pairs_hook": _unique,
    "parse_constant": _no_constant,
    "parse_float": _finite,
}


def _short(value: Any) -> str:
    """A value in at most 80 characters, without secrets, however large and deep it is."""
    text = repr(redacted(_head(value)))
    return f"{text[: _SHOWN - 3]}..." if len(text) > _SHOWN else text


def _head(value: Any, depth: int = 2) -> Any:
    """The beginning of a value."""
    if isinstance(value, dict):
        return {name[:200]: _head(value[name], depth - 1) for name in islice(value, 4)} if depth else {}
    if isinstance(value, list):
        return [_head(each, depth - 1) for each in value[:4]] if depth else []
    return value[:2000] if isinstance(value, str | bytes) else value
