"""Sources: folders, lists and tables, and every reason to refuse one, with its row."""

import builtins
import json
import os
from pathlib import Path
from typing import Any

import pytest
from data_fixtures import photo, photo_folder

from datamodules.writing.source_lists import Columns, Source, find_sources, fingerprint, make_key
from datamodules.writing.source_tables import read_table

ROWS = [
    {"path": "in/p001.jpg", "caption": 'one, "quoted"\nand broken', "label": 7, "note": "x"},
    {"path": "in/p000.jpg", "caption": "größe", "label": 0, "note": "y"},
]


def csv_of(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    quoted = [['"' + str(value).replace('"', '""') + '"' for value in row.values()] for row in rows]
    return "\n".join([delimiter.join(rows[0]), *(delimiter.join(row) for row in quoted)]) + "\n"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows))
    else:
        path.write_text(csv_of(rows, "\t" if path.suffix == ".tsv" else ","), encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_say_the_same(tmp_path: Path, suffix: str) -> None:
    table = write(tmp_path / f"list.{suffix}", ROWS)
    assert find_sources(table, Columns(json=("note",))) == [
        Source(
            "in/p000",
            tmp_path / "in/p000.jpg",
            (("txt", "größe".encode()), ("cls", b"0"), ("json", b'{"note": "y"}')),
            None,
            f"{table} row 2",
        ),
        Source(
            "in/p001",
            tmp_path / "in/p001.jpg",
            (("txt", b'one, "quoted"\nand broken'), ("cls", b"7"), ("json", b'{"note": "x"}')),
            None,
            f"{table} row 1",
        ),
    ]


def test_folder_and_text_list(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 2)
    photo(1).save(folder / "p000.mask.png")
    assert [source.key for source in find_sources(folder)] == ["p000", "p001"]
    (tmp_path / "list.txt").write_text("in/p001.jpg\n\n  in/p000.jpg \n")
    assert find_sources(tmp_path / "list.txt") == [
        Source("in/p000", tmp_path / "in/p000.jpg"),
        Source("in/p001", tmp_path / "in/p001.jpg"),
    ]


def test_a_list_of_files_is_relative_to_itself(tmp_path: Path) -> None:
    photo_folder(tmp_path / "in", 4)
    (tmp_path / "lists").mkdir()
    names = tmp_path / "lists" / "val.txt"
    names.write_text("../in/p003.jpg\n../in/p001.jpg\n\n")
    assert [source.key for source in find_sources(names)] == ["in/p001", "in/p003"]


def test_columns_are_looked_up_in_order(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "path": "b.png", "text": "t", "title": "u", "mask": "m.PNG", "cls": ""}]
    table = write(tmp_path / "t.csv", rows)
    assert find_sources(table) == [
        Source("b", tmp_path / "b.png", (("txt", b"t"),), tmp_path / "m.PNG", f"{table} row 1")
    ]
    chosen = find_sources(table, Columns(image=("image",), caption=("title",), mask=(), label=()))
    assert chosen == [Source("a", tmp_path / "a.png", (("txt", b"u"),), None, f"{table} row 1")]


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"file": "a.png"}, Columns(), r"column path or image or file_name for the image, got the columns \['file'\]"),
        (
            {"path": "a.png"},
            Columns(caption=("cap",)),
            r"expected a column cap for the caption, got the columns \['path'\]",
        ),
        ({"path": "a.png"}, Columns(json=("b",)), r"columns \['b'\] for the json, got the columns \['path'\]"),
        ({"path": "a.gif"}, Columns(), r"row 1: column 'path': expected the path of an image, got 'a\.gif'"),
        ({"path": ""}, Columns(), r"row 1: column 'path': expected the path of an image, got ''"),
        ({"path": {"bytes": "x"}}, Columns(), r"row 1: column 'path': expected a text, got dict"),
        ({"path": "a.png", "text": 3}, Columns(), r"row 1: column 'text': expected a text, got int"),
        (
            {"path": "a.png", "mask": "m.tif"},
            Columns(),
            r"row 1: column 'mask': expected the path of a mask, got 'm\.tif'",
        ),
        (
            {"path": "a.png", "label": "cat"},
            Columns(),
            r"row 1: column 'label': expected a class number, got 'cat'; --l",
        ),
        ({"path": "a.png", "label": True}, Columns(), r"expected a class number, got True"),
        ({"path": "a.png", "label": -1}, Columns(), r"expected a class number, got -1"),
    ],
)
def test_refused_rows_are_named(tmp_path: Path, row: dict[str, Any], columns: Columns, message: str) -> None:
    table = write(tmp_path / "t.jsonl", [row])
    with pytest.raises(ValueError, match=rf"t\.jsonl:? .*{message}"):
        find_sources(table, columns)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "path,caption\na.png,one\nb.png,two, three\n", "row 2: expected 2 values, got 3; quote texts"),
        ("t.csv", 'path,caption\na.png,"one\n', "unexpected end of data"),
        ("t.csv", "", r"expected a column path or .* got the columns \[\]"),
        ("t.jsonl", '{"path": "a.png"}\n\n{"path"\n', "line 3: Expecting"),
        ("t.jsonl", "[1]\n", "line 1: expected an object, got list"),
        ("t.jsonl", '{"path": "a.png"}\n{}\n', "row 2: column 'path': expected the path of an image, got ''"),
        ("t.parquet", "no table", "Parquet magic bytes not found|Could not open"),
    ],
)
def test_refused_tables_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}:? .*({message})"):
        find_sources(tmp_path / name)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.txt"])
def test_lists_are_utf_8(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"path\n\xff.png\n")
    with pytest.raises(ValueError, match=rf"{name}: .*'utf-8' codec can't decode"):
        find_sources(tmp_path / name)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ValueError, match=r"t\.parquet: reading Parquet needs pyarrow: pip install 'inpaint-module\[parq"
    ):
        read_table(tmp_path / "t.parquet")


def test_same_key_twice(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", [{"path": "a.png"}, {"path": "a.jpg"}])
    with pytest.raises(
        ValueError, match=r"t\.csv row 1: .*a\.png: same key as .*t\.csv row 2: .*a\.jpg: 'a'; rename one"
    ):
        find_sources(table)


def test_colliding_keys(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    photo(1).save(folder / "p000.png")
    with pytest.raises(ValueError, match=r"p000\.png: same key as .*p000\.jpg: 'p000'; rename one"):
        find_sources(folder)


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none: expected a folder of images or a file that lists them"):
        find_sources(tmp_path / "none")
    with pytest.raises(ValueError, match="no images"):
        find_sources(tmp_path)
    (tmp_path / "list.txt").write_text("a.gif\n")
    with pytest.raises(ValueError, match=r"list\.txt: expected names of images .*got \['a\.gif'\]"):
        find_sources(tmp_path / "list.txt")


def test_key() -> None:
    assert make_key("../a b/c.d.JPG") == "a_b/c_d"
    assert make_key("/abs/x.png") == "abs/x"


def test_fingerprint_sees_every_change(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 2)
    table = write(tmp_path / "t.csv", [{"path": "in/p000.jpg", "caption": "a", "mask": "in/m.png"}])
    seen = {fingerprint(find_sources(folder)), fingerprint(find_sources(table))}
    assert fingerprint(find_sources(folder)) in seen

    def changed() -> bool:
        before = len(seen)
        seen.update([fingerprint(find_sources(folder)), fingerprint(find_sources(table))])
        return len(seen) > before

    assert not changed()
    (folder / "p000.txt").write_text("another caption")
    assert changed()
    os.utime(folder / "p000.jpg", ns=(0, 1))
    assert changed()
    photo(3).save(folder / "p000.mask.png")
    assert changed()
    photo(3).save(folder / "m.png")
    assert changed()
    write(table, [{"path": "in/p000.jpg", "caption": "b", "mask": "in/m.png"}])
    assert changed()
    (folder / "p001.jpg").rename(folder / "p002.jpg")
    assert changed()
    (folder / "other").write_text("")
    assert not changed()
    write(table, [{"path": "nowhere/p000.jpg", "caption": "b", "mask": "in/m.png"}])
    assert changed()
