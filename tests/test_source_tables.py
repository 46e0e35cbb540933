"""Shards from a table: captions, masks and classes by column, and rows that miss a file."""

import json
from pathlib import Path

import pytest
from data_fixtures import photo, photo_folder

from datamodules.make_shards import main
from datamodules.shards.shard_specs import open_shards


def test_a_table_gives_captions_masks_classes_and_more(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 3)
    for name in ("p000.mask.png", "own mask.jpg"):
        photo(7).convert("L").save(folder / name)
    (folder / "p000.json").write_text('{"annotations": []}')
    rows = [
        {"image": "p000.jpg", "text": "a caption", "mask": "own mask.jpg", "cls": 3, "author": "me", "year": 1999},
        {"image": "p001.jpg", "cls": 4},
    ]
    table = folder / "list.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows))
    assert main([str(table), str(tmp_path / "out"), "--json-columns", "author,year", "--workers", "1"]) == 0
    first, second = (open_shards(str(tmp_path / "out")).read(number).fields for number in range(2))
    jpegs = [(folder / name).read_bytes() for name in ("p000.jpg", "own mask.jpg", "p001.jpg")]
    extra = first.pop("json")
    assert first == {"jpg": jpegs[0], "txt": b"a caption", "mask.jpg": jpegs[1], "cls": b"3"}
    assert json.loads(extra) == {"annotations": [], "author": "me", "year": 1999}
    assert second == {"jpg": jpegs[2], "txt": b"photo 1\n", "cls": b"4", "json": b'{"author": null, "year": null}'}


def test_columns_by_name_or_none(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    (folder / "list.csv").write_text("url,alt,caption,label\np000.jpg,other,first,cat\n")
    command = [str(folder / "list.csv"), str(tmp_path / "out"), "--image-column", "url", "--workers", "1"]
    assert main([*command, "--caption-column", "alt", "--label-column", ""]) == 0
    fields = open_shards(str(tmp_path / "out")).read(0).fields
    assert {name: fields[name] for name in fields if name != "jpg"} == {"txt": b"other"}


def test_missing_files_of_a_table_are_named_with_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    rows = "path,mask\ngone.jpg,\np000.jpg,\np001.jpg,gone.png\n"
    (folder / "list.csv").write_text(rows)
    photo(1).save(folder / "p001.jpg")
    assert main([str(folder / "list.csv"), str(tmp_path / "out"), "--workers", "1"]) == 1
    message = capsys.readouterr().err
    assert "2 of 3 images cannot be used" in message
    assert f"{folder}/list.csv row 1: {folder}/gone.jpg: No such file or directory\n" in message
    assert f"{folder}/list.csv row 3: {folder}/gone.png: No such file or directory\n" in message
