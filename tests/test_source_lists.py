"""Sources: folders, lists and tables, and every reason to refuse one, with its row."""

import builtins
import json
import os
import unicodedata
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from data_fixtures import photo, photo_folder

from datamodules.account import Account
from datamodules.writing.source_lists import SAME_NAME, Columns, Source, find_sources, fingerprint, make_key
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
            (),
            (("txt", "größe".encode()), ("cls", b"0"), ("json", b'{"note": "y"}')),
            f"{table} row 2",
            "in/p000.jpg",
        ),
        Source(
            "in/p001",
            tmp_path / "in/p001.jpg",
            (),
            (("txt", b'one, "quoted"\nand broken'), ("cls", b"7"), ("json", b'{"note": "x"}')),
            f"{table} row 1",
            "in/p001.jpg",
        ),
    ]


def test_folder_and_text_list(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 2)
    photo(1).save(folder / "p000.mask.png")
    assert [source.key for source in find_sources(folder)] == ["p000", "p001"]
    (tmp_path / "list.txt").write_text("in/p001.jpg\n\n  in/p000.jpg \n")
    beside = [("txt", folder / "p000.txt"), ("mask", folder / "p000.mask.png")], [("txt", folder / "p001.txt")]
    assert find_sources(tmp_path / "list.txt") == [
        Source(f"in/p00{number}", folder / f"p00{number}.jpg", tuple(files), name=f"in/p00{number}.jpg")
        for number, files in enumerate(beside)
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
        Source("b", tmp_path / "b.png", (("mask", tmp_path / "m.PNG"),), (("txt", b"t"),), f"{table} row 1", "b.png")
    ]
    chosen = find_sources(table, Columns(image=("image",), caption=("title",), mask=(), label=()))
    assert chosen == [Source("a", tmp_path / "a.png", (), (("txt", b"u"),), f"{table} row 1", "a.png")]


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"f": "a.png"}, Columns(), r"column path or image or file_name or .* for the image, got the columns \['f'\]"),
        (
            {"path": "a.png"},
            Columns(caption=("cap",)),
            r"expected a column cap for the caption, got the columns \['path'\]",
        ),
        ({"path": "a.png"}, Columns(json=("b",)), r"columns \['b'\] for the json, got the columns \['path'\]"),
        ({"path": "a.mp4"}, Columns(), r"row 1: column 'path': expected the path of an image, got 'a\.mp4'"),
        ({"path": ""}, Columns(), r"row 1: column 'path': expected the path of an image, got ''"),
        ({"path": {"bytes": "x"}}, Columns(), r"row 1: column 'path': expected a text, got dict"),
        ({"path": "a.png", "text": 3}, Columns(), r"row 1: column 'text': expected a text, got int"),
        (
            {"path": "a.png", "mask": "m.txt"},
            Columns(),
            r"row 1: column 'mask': expected the path of a mask, got 'm\.txt'",
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
        ("t.jsonl", '{"path": "a.png"}\n\n{"path"\n', "line 3: expected JSON, got Expecting"),
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


def test_two_with_one_key_are_both_taken(tmp_path: Path) -> None:
    """One keeps the key, whose name it is; the mark of the other comes from its own name."""
    for name in ("photo (1).jpg", "photo [1].jpg", "é_.jpg", "é .jpg", "x.jpg", "x.png"):
        photo(1).save(tmp_path / name)
    account = Account()
    keys = {source.name: source.key for source in find_sources(tmp_path, account=account)}
    assert keys == {
        "photo (1).jpg": "photo__1__" + sha256(b"photo (1).jpg\n").hexdigest()[:8],
        "photo [1].jpg": "photo__1__" + sha256(b"photo [1].jpg\n").hexdigest()[:8],
        "é_.jpg": "é_",
        "é .jpg": "é__" + sha256("é .jpg\n".encode()).hexdigest()[:8],
        "x.jpg": "x",
        "x.png": "x_" + sha256(b"x.png\n").hexdigest()[:8],
    }
    assert account.noted == {SAME_NAME: (4, ["photo (1).jpg", "photo [1].jpg", "x.png"])}


def test_an_image_in_several_rows_is_a_sample_each_time(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", [{"path": "a.png", "caption": "one"}, {"path": "a.png", "caption": "two"}])
    sources = find_sources(table)
    assert [source.given for source in sources] == [(("txt", b"one"),), (("txt", b"two"),)]
    assert len({source.key for source in sources}) == 2


def test_a_line_that_comes_twice_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\nb.png\na.png\n")
    account = Account()
    assert [source.key for source in find_sources(tmp_path / "list.txt", account=account)] == ["a", "b"]
    assert account.aside == {"listed more than once": (1, ["a.png"])}


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="none: expected a folder of images, or a text file or table that lists them, got none"
    ):
        find_sources(tmp_path / "none")
    with pytest.raises(ValueError, match="no images"):
        find_sources(tmp_path)
    (tmp_path / "list.txt").write_text("a.mp4\n")
    with pytest.raises(ValueError, match=r"list\.txt: expected names of images, got \['a\.mp4'\]"):
        find_sources(tmp_path / "list.txt")


def test_key() -> None:
    assert make_key("../a b/c.d.JPG") == "a_b/c_d"
    assert make_key("/abs/x.png") == "abs/x"
    assert make_key("Größe 日本.jpg") == make_key(unicodedata.normalize("NFD", "Größe 日本.jpg")) == "Größe_日本"
    assert make_key("हिन्दी.jpg") == "हिन्दी"
    assert make_key("\udce9\n😀*.jpg") == "____"


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
