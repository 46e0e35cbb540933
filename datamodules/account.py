"""The account that commands over files end with: what was taken, found, left aside and refused, and why."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

WIDTH = 80  # columns of a terminal
FOUND = ("captions", "masks", "labels", "json")  # counted even where there are none; targets only where there are some
HIDDEN = "hidden or of the system"
_SYSTEM = {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "picasa.ini", "lost+found"}
_SYSTEM |= {"__macosx", "@eadir", "@__thumb", "@tmp", "#recycle", "@recycle", "#snapshot", "@recently-snapshot"}
_SYSTEM |= {"$recycle.bin", "system volume information", "network trash folder", "temporary items"}
SHOWN = 3  # names of each kind
_REFUSED = 10  # reasons
_LONGEST = 48  # characters of a name


class Account:
    """What became of files or samples: counts by kind, each with its first names.

    Kinds of `found` are those of FOUND, and targets where there are some; kinds of `noted` are worth a look (an empty
    mask), those of `aside` say why a file was left out. Accounts of parts add up.

    Attributes:
        taken: how many files or samples were taken.
        found: how many of them have a caption, a mask, labels, a json, a target.
        noted: kind -> (count, first names).
        aside: kind -> (count, first names).
        refused: a line for each that was meant to be taken and cannot be: its name and the reason.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.found = dict.fromkeys(FOUND, 0)
        self.noted: dict[str, tuple[int, list[str]]] = {}
        self.aside: dict[str, tuple[int, list[str]]] = {}
        self.refused: list[str] = []

    def take(self, found: Iterable[str], notes: Iterable[tuple[str, str]] = ()) -> None:
        """Count one that is taken, with the kinds that were found of it, and notes (kind, name)."""
        self.taken += 1
        for kind in found:
            self.found[kind] = self.found.get(kind, 0) + 1
        for kind, name in notes:
            self.note(kind, name)

    def note(self, kind: str, *names: str) -> None:
        """Count names under a kind that is worth a look."""
        _count(self.noted, kind, len(names), names)

    def leave(self, kind: str, *names: str) -> None:
        """Count names as left out for the reason that the kind says."""
        _count(self.aside, kind, len(names), names)

    def add(self, other: Account) -> None:
        """Count what another account has counted."""
        self.taken += other.taken
        for kind, count in other.found.items():
            self.found[kind] = self.found.get(kind, 0) + count
        for mine, theirs in ((self.noted, other.noted), (self.aside, other.aside)):
            for kind, (count, names) in theirs.items():
                _count(mine, kind, count, names)
        self.refused += other.refused

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON knows it, for `from_json`."""
        return {name: value for name, value in vars(self).items() if value}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Account:
        """The account that `as_json` wrote."""
        account = cls()
        account.taken, account.refused = content.get("taken", 0), list(content.get("refused", []))
        account.found |= content.get("found", {})
        for mine, name in ((account.noted, "noted"), (account.aside, "aside")):
            for kind, (count, names) in content.get(name, {}).items():
                mine[kind] = (count, list(names))
        return account

    def text(self, taken: str = "photos taken") -> str:
        """The account in lines of at most 80 columns; `taken` says what the first number counts."""
        taken = re.sub("^(photo|sample)s", r"\1", taken) if self.taken == 1 else taken
        lines = [f"{self.taken} {taken}", f"  {', '.join(f'{kind} {count}' for kind, count in self.found.items())}"]
        lines += _tallies(self.noted)
        lines += self._left()
        if self.refused:
            lines.append(f"{len(self.refused)} refused")
            lines += [f"  {printable(reason)}" for reason in self.refused[:_REFUSED]]
            lines += [f"  and {len(self.refused) - _REFUSED} more"] * (len(self.refused) > _REFUSED)
        return "\n".join(map(_wrapped, lines)) + "\n"

    def left(self) -> str:
        """The part of the text about what was left aside; "" if nothing was."""
        return "".join(f"{_wrapped(line)}\n" for line in self._left())

    def _left(self) -> list[str]:
        total = sum(count for count, _ in self.aside.values())
        return [f"{total} left aside", *_tallies(self.aside)] if total else []


def write_out(text: str) -> None:
    """Write to stdout, with escapes for what the terminal's encoding does not have."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


class RefusedError(ValueError):
    """Files cannot be used; `account` is of all that were looked at."""

    def __init__(self, message: str, account: Account) -> None:
        super().__init__(message)
        self.account = account


def _count(kinds: dict[str, tuple[int, list[str]]], kind: str, count: int, names: Iterable[str]) -> None:
    if count:
        before, first = kinds.get(kind, (0, []))
        kinds[kind] = (before + count, [*first, *names][:SHOWN])


def _tallies(kinds: Mapping[str, tuple[int, list[str]]]) -> list[str]:
    return [f"  {count} {kind}: {first_names(names, count)}" for kind, (count, names) in kinds.items()]


def first_names(names: Iterable[str], count: int) -> str:
    """The first few of `count` names, short enough for a line, and how many more there are."""
    first = [shortened(name) for name in list(names)[:SHOWN]]
    more = count - len(first)
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def shortened(name: str) -> str:
    """A name with its middle left out where it is long, and without characters that a terminal would obey."""
    name = printable(name)
    half = (_LONGEST - 3) // 2
    return name if len(name) <= _LONGEST else f"{name[:half]}...{name[-half:]}"


def printable(text: str) -> str:
    """The text with escapes for control characters and for bytes of a file's name that are no text."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _wrapped(line: str) -> str:
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(
        line, WIDTH, subsequent_indent=f"{indent}    ", break_on_hyphens=False, replace_whitespace=False
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's or a program's own: its name begins with a dot, or is a known one."""
    return name.startswith((".", "~$")) or name.lower() in _SYSTEM
