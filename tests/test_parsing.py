"""JSON that is not trusted: what is right comes out, and all else is one ValueError that names file and field."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inpaint_module.parsing import Parsed, parse_json, parse_json_lines, read_json


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected JSON, got Expecting value: line 1 column 1"),
        (b"{", "expected JSON, got Expecting property name"),
        (b'{"a": 1} x', "expected JSON, got Extra data"),
        (b"\xff\xfe\xfa", "expected JSON, got .*codec can't decode"),
        (b"[" * 100_000, "expected JSON, got one nested too deep"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "expected JSON, got one nested too deep"),
        (b'{"a": 1, "b": 2, "a": 3}', "expected JSON, got the name 'a' twice in one object"),
        (b'{"a": NaN}', "expected JSON, got NaN, which is no number"),
        (b"[-Infinity]", "expected JSON, got -Infinity, which is no number"),
        (b"[1e400]", "expected JSON, got the number 1e400, which is too large"),
        (b"[" + b"9" * 5000 + b"]", "expected JSON, got Exceeds the limit"),
        (b'"\x01"', "expected JSON, got Invalid control character"),
    ],
)
def test_no_json(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"^there: {message}.*; make it again$"):
        parse_json(data, "there", advice="make it again")


def test_what_other_programs_write_is_taken_where_it_does_no_harm() -> None:
    lenient = parse_json('{"a": NaN, "b": 1, "b": 2}', "there", strict=False)
    assert lenient["b"].whole() == 2
    with pytest.raises(ValueError, match="a: expected a number, got nan"):
        lenient["a"].number()
    with pytest.raises(ValueError, match=r"^there: expected JSON, got one nested too deep"):
        parse_json("[" * 100_000, "there", strict=False)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_encodings(encoding: str) -> None:
    assert parse_json('{"é": "ü"}'.encode(encoding), "there")["é"].text() == "ü"
    assert parse_json('\ufeff{"é": "ü"}', "there")["é"].text() == "ü"


VALUE = parse_json('{"n": 3, "f": 2.5, "t": "a", "b": true, "z": null, "l": [1, {"x y": -1}], "s": "\\ud800"}', "there")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda v: v["m"], "m: expected a value, got none"),
        (lambda v: v["z"], "z: expected a value, got none"),
        (lambda v: v["l"]["m"], r"l: expected an object, got \[1, {'x y': -1}\]"),
        (lambda v: v.items(), "expected a list, got {'n': 3, .*"),
        (lambda v: v["l"].items(3), "l: expected a list of 3, got 2"),
        (
            lambda v: v["l"].items()[1]["x y"].whole(),
            r"l\[1\]\['x y'\]: expected a whole number from 0 to .*, got -1",
        ),
        (lambda v: v["b"].whole(), "b: expected a whole number from 0 to 9223372036854775807, got True"),
        (lambda v: v["f"].whole(), "f: expected a whole number .*, got 2.5"),
        (lambda v: v["n"].whole(4, 9), "n: expected a whole number from 4 to 9, got 3"),
        (lambda v: v["b"].number(), "b: expected a number, got True"),
        (lambda v: v["t"].number(0, 1), "t: expected a number from 0 to 1, got 'a'"),
        (lambda v: v["n"].flag(), "n: expected true or false, got 3"),
        (lambda v: v["n"].text(), "n: expected a text, got 3"),
        (lambda v: v["s"].text(), r"s: expected a text, got '\\ud800'"),
        (lambda v: v["t"].text(re.compile("b"), "a b"), "t: expected a b, got 'a'"),
    ],
)
def test_wrong_values_are_named(read: Callable[[Parsed], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^there: {message}$"):
        read(VALUE)


def test_right_values() -> None:
    assert (VALUE["n"].whole(3, 3), VALUE["n"].number(), VALUE["f"].number(0, 3)) == (3, 3.0, 2.5)
    assert (VALUE["b"].flag(), VALUE["t"].text(), VALUE.get("z"), VALUE.get("m")) == (True, "a", None, None)
    assert [type(each.value) for each in VALUE["l"].items(2)] == [int, dict]
    assert VALUE.members()["z"].field == "z"


def test_errors_are_short_and_hold_no_secret() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    wide = {"url": "https://host/a.tar?" + "sig=SECRET" * 500, "token": "SECRET", "more": "x" * 10**6}
    for value in (deep, wide, [wide] * 10**5, "https://host/" + "a" * 70 + "?SECRET", 10**4000):
        with pytest.raises(ValueError, match=r"^there: expected true or false, got ") as caught:
            Parsed(value, "there").flag()
        assert len(str(caught.value)) < 130
        assert "SECRET" not in str(caught.value)


def test_files_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}\n')
    assert read_json(path)["a"].whole() == 1
    with pytest.raises(ValueError, match=r"a\.json: expected at most 4 bytes of JSON, got 5"):
        read_json(path, max_bytes=4)
    assert [line["a"].whole() for line in parse_json_lines(b'{"a": 1}\r\n\n{"a": 2}', "there")] == [1, 2]
    with pytest.raises(ValueError, match=r"^there, line 2: expected JSON"):
        list(parse_json_lines('{"a": 1}\n{"a', "there"))


def test_mutated_json_gives_a_value_or_a_named_error() -> None:
    source = b'{"version": 1, "keys": ["a", "b"], "fields": [{"jpg": [512, 7.5e3]}, null], "more": {"x": true}}'
    draw, pieces = random.Random(0), [b"9" * 30, b"[", b'"', b"-", b"\x00", b"e999", b"\xff", b""]
    for _ in range(2000):
        data = bytearray(source)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(data))
            data[at : at + draw.randint(0, 2)] = draw.choice(pieces)
        try:
            parse_json(bytes(data), "there")
        except ValueError as error:
            assert str(error).startswith("there: expected JSON, got ")  # noqa: PT017, most are valid
