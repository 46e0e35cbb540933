"""Folders and tables as people have them, packed: what is taken is right, what is not is told."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fixtures import contents, encode, photo, photo_folder
from PIL import Image, ImageOps

from datamodules.account import RefusedError
from datamodules.decode.mask_files import EMPTY, FULL, INVERTED
from datamodules.make_shards import main, make_shards
from datamodules.shards.shard_specs import open_shards
from datamodules.writing import source_samples
from datamodules.writing.source_lists import NOT_THERE, UNUSED_COLUMNS


def packed(source: Path, **options: Any) -> tuple[dict[str, dict[str, bytes]], Any]:
    """The samples' fields by key, and the account."""
    out = source.with_name(f"{source.name}.out")
    report = make_shards(source, out, **options)
    shards = open_shards(str(out))
    samples = [shards.read(number) for number in range(len(shards))]
    assert len(samples) == report.account.taken
    return {sample.key: sample.fields for sample in samples}, report.account


def mask(share: float, width: int = 48, height: int = 40) -> Image.Image:
    """Black, and white in so large a share of the rows from the top."""
    picture = Image.new("L", (width, height))
    picture.paste(255, (0, 0, width, round(height * share)))
    return picture


def test_a_folder_as_people_have_it(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    photo(1).save(folder / "Größe 1.TIF", "TIFF")
    (folder / "größe 1.TXT").write_bytes("\ufeffein Hund\0\0".encode())
    photo(2).save(folder / "b.jpe", "JPEG")
    (folder / "b.caption").write_bytes("ein Fluß".encode("utf-16"))
    (folder / "b.cls").write_bytes(b"\xef\xbb\xbf7\n")
    mask(0.25).save(folder / "b.MASK.bmp")
    mask(0.25).save(folder / "b.label.tif")
    found, account = packed(folder)
    assert {key: set(fields) for key, fields in found.items()} == {
        "Größe_1": {"png", "txt"},
        "b": {"jpg", "txt", "cls", "mask.png", "label.png"},
    }
    assert found["Größe_1"]["txt"] == b"ein Hund"
    assert found["b"]["txt"] == "ein Fluß".encode()
    assert found["b"]["cls"] == b"7\n"
    assert found["b"]["jpg"] == (folder / "b.jpe").read_bytes()
    assert np.array_equal(Image.open(io.BytesIO(found["Größe_1"]["png"])), photo(1))
    assert np.asarray(Image.open(io.BytesIO(found["b"]["mask.png"]))).mean() == 255 / 4
    assert account.found == {"captions": 2, "masks": 1, "labels": 1, "json": 0}


@pytest.mark.parametrize("table", ["metadata.jsonl", "Metadata.CSV"])
def test_metadata_as_hugging_face_has_it(tmp_path: Path, table: str) -> None:
    folder = photo_folder(tmp_path / "in", 3)
    (folder / "deep").mkdir()
    photo(5).save(folder / "deep" / "d.png")
    mask(0.5).save(folder / "deep" / "m.png")
    rows = [
        {"file_name": "p000.jpg", "text": "zero", "mask_file_name": "", "author": "me"},
        {"file_name": "P001.JPG", "text": "one", "mask_file_name": "", "author": "me"},
        {"file_name": "deep/d.png", "text": "deep", "mask_file_name": "deep/m.png", "author": "me"},
        {"file_name": "gone.png", "text": "nothing", "mask_file_name": "", "author": "me"},
    ]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / table).write_text("\n".join(map(json.dumps, rows) if table.endswith("jsonl") else lines))
    found, account = packed(folder)
    captions = {"p000": b"zero", "p001": b"one", "p002": b"photo 2\n", "deep/d": b"deep"}
    assert {key: fields["txt"] for key, fields in found.items()} == captions
    assert found["deep/d"]["mask.png"] == (folder / "deep" / "m.png").read_bytes()
    assert account.aside == {NOT_THERE: (1, ["gone.png"])}
    assert account.noted == {UNUSED_COLUMNS: (1, ["author"])}


def test_a_table_called_metadata_without_pictures_is_not_used(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    (folder / "metadata.csv").write_text("camera,date\nx,y\n")
    assert packed(folder)[1].aside == {"not used, ending in .csv": (1, ["metadata.csv"])}


@pytest.mark.parametrize("names", ["Image Path,Prompt ", " FILE-NAME,Text", "path,caption"])
def test_columns_with_spaces_and_in_any_case(tmp_path: Path, names: str) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    (folder / "t.csv").write_text(f"{names},Mask Path\np000.jpg,hello,\n", encoding="utf-16")
    assert packed(folder / "t.csv")[0]["p000"]["txt"] == b"hello"


def test_lists_and_tables_made_on_windows(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 2)
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfin\\p000.jpg\r\nin\\P001.JPG\r\n")
    (tmp_path / "t.csv").write_text('path;caption\r\nin\\p001.jpg;"a, b"\r\n', encoding="utf-16")
    assert set(packed(tmp_path / "list.txt")[0]) == {"in/p000", "in/P001"}
    assert packed(tmp_path / "t.csv")[0]["in/p001"]["txt"] == b"a, b"
    assert (folder / "p001.jpg").exists()


def test_a_folder_of_tables_says_what_to_name(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-0.parquet").touch()
    with pytest.raises(ValueError, match=r"to take those of a table, name it: \S+/data/train-0\.parquet"):
        make_shards(tmp_path, tmp_path / "out")


def test_pictures_in_a_parquet_table(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pictures = [encode(photo(number), "GIF" if number == 2 else "PNG") for number in range(5)]
    rows: list[dict[str, Any]] = [
        {"image": {"bytes": data, "path": f"{9 - number} é.png"}, "mask": encode(mask(0.5)), "text": f"t{number}"}
        for number, data in enumerate(pictures)
    ]
    rows[1]["image"]["path"] = None
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train-0.parquet", row_group_size=2)
    found, account = packed(tmp_path / "train-0.parquet", workers=2)
    marks = ["00000000_9_é", "00000001", "00000002_7_é", "00000003_6_é", "00000004_5_é"]
    assert list(found) == [f"train-0/{mark}" for mark in marks]
    assert [fields["txt"].decode() for fields in found.values()] == [f"t{number}" for number in range(5)]
    assert [fields["png"] for fields in found.values()][3] == pictures[3]
    assert account.found["masks"] == 5
    assert account.noted == {"converted to PNG": (1, ["row 3"])}


def test_a_row_without_a_picture_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([{"image": b"x"}, {"image": None}]), tmp_path / "t.parquet")
    with pytest.raises(RefusedError) as refused:
        packed(tmp_path / "t.parquet")
    assert refused.value.account.refused == [
        f"{tmp_path}/t.parquet row 1: column 'image': cannot be read as a picture",
        f"{tmp_path}/t.parquet row 2: column 'image': expected the bytes of a picture, got none",
    ]


def test_captions_in_another_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photo_folder(tmp_path / "in", 2)
    (folder / "p001.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(
        RefusedError, match=r"\n\S*/p001\.txt: expected a text in UTF-8: .*--caption-encoding names another"
    ):
        packed(folder)
    assert packed(folder, caption_encoding="latin-1")[0]["p001"]["txt"] == "Größe".encode()
    assert main([str(folder), str(tmp_path / "new"), "--caption-encoding", "rot13"]) == 1
    assert "caption_encoding: expected one that Python knows, such as latin-1, got 'rot13'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p000.txt", b"\xff", "expected a text in UTF-8"),
        ("p000.cls", b"cat", "expected a whole number"),
        ("p000.mask.png", b"x", "cannot be read as a picture"),
        ("p000.seg.png", encode(photo(1)), "expected a label map"),
        ("p000.json", b'{"annotations": [{"segmentation": {"counts": [3], "size": [2, 2]}}]}', "expected COCO counts"),
        ("p000.json", b'{"segmentation": [[0, 0, 1, 1, 2, 3]], "width": "a"}', "expected width and height"),
        ("p000.json", b"[]", "expected an object in json, got list"),
        ("p000.json", b'{"caption": 3}', "expected a text as caption"),
        ("p000.jpg", encode(photo(1), "JPEG")[:-200], "image file is truncated"),
    ],
)
def test_each_message_names_its_own_file(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    (folder / name).write_bytes(data)
    with pytest.raises(RefusedError) as refused:
        packed(folder)
    (reason,) = refused.value.account.refused
    assert reason.startswith(f"{folder}/{name}: {message}")
    assert "0x" not in reason.replace("0xff", "")


def test_masks_worth_a_look_are_counted(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 5)
    for number, share in enumerate((0, 1, 0.95, 0.5)):
        mask(share).save(folder / f"p00{number}.mask.png")
    frame = mask(1)
    frame.paste(0, (14, 10, 34, 30))  # 79 % white, all along the border
    frame.save(folder / "p004.mask.png")
    assert packed(folder)[1].noted == {
        EMPTY: (1, ["p000.mask.png"]),
        FULL: (1, ["p001.mask.png"]),
        INVERTED: (2, ["p002.mask.png", "p004.mask.png"]),
    }


def test_masks_of_other_ways_are_written_as_training_reads_them(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    hole = photo(1).convert("RGBA")
    hole.putalpha(ImageOps.invert(mask(0.25)))  # transparent where to inpaint, over a photo
    hole.save(folder / "p000.mask.png")
    with pytest.raises(RefusedError, match="make_shards and predict --transparent-masks"):
        packed(folder)
    found, _ = packed(folder, transparent_masks=True)
    assert np.array_equal(Image.open(io.BytesIO(found["p000"]["mask.png"])), mask(0.25))
    other = photo_folder(tmp_path / "other", 1)
    ImageOps.invert(mask(0.25)).save(other / "p000.mask.png")
    found, account = packed(other, inverted_masks=True)
    assert np.array_equal(Image.open(io.BytesIO(found["p000"]["mask.png"])), mask(0.25))
    assert account.noted == {}


def test_a_json_with_a_caption_or_a_copy_of_the_photo(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    photo(1).save(folder / "a.png")
    content = {"caption": "text", "shapes": [{"points": [[0, 0], [9, 0], [9, 9]]}]}
    (folder / "a.json").write_text(json.dumps(content | {"imageData": "x" * 1000}))
    found, account = packed(folder)
    assert json.loads(found["a"]["json"]) == content
    assert account.found == {"captions": 1, "masks": 0, "labels": 0, "json": 1}


def test_names_that_the_terminal_cannot_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    (folder / "größe.xmp").touch()
    buffer = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer, encoding="ascii", write_through=True))
    assert main([str(folder), str(tmp_path / "out"), "--workers", "1"]) == 0
    assert rb"gr\xf6\xdfe.xmp" in buffer.getvalue()


def test_a_json_that_says_nothing_is_told(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 2)
    (folder / "p000.json").write_text('{"regions": []}')
    (folder / "p001.json").write_text('{"shapes": [{"points": [[0, 0], [9, 0], [9, 9]]}]}')
    assert packed(folder)[1].noted == {source_samples.UNKNOWN: (1, ["p000.json"])}


def test_the_account_after_a_stop_is_that_of_an_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photo_folder(tmp_path / "in", 6)
    for number in range(6):
        mask(0 if number % 2 else 0.5).save(folder / f"p00{number}.mask.png")
    (folder / "p004.jpg").write_bytes(b"x")
    whole = make_shards(folder, tmp_path / "whole", samples_per_shard=2, skip_bad=True)
    real = source_samples.stored_picture

    def stop(data: bytes, name: str, max_pixels: int) -> Any:
        if name == "p005.jpg":
            raise KeyboardInterrupt
        return real(data, name, max_pixels)

    with monkeypatch.context() as patch:
        patch.setattr(source_samples, "stored_picture", stop)
        with pytest.raises(KeyboardInterrupt):
            make_shards(folder, tmp_path / "out", samples_per_shard=2, skip_bad=True)
    report = make_shards(folder, tmp_path / "out", samples_per_shard=2, skip_bad=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert report.account.text() == whole.account.text()
    assert report.account.taken == 5
    assert report.account.noted == {EMPTY: (3, ["p001.mask.png", "p003.mask.png", "p005.mask.png"])}


def test_a_refused_folder_ends_with_its_account(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photo_folder(tmp_path / "in", 4)
    (folder / "p001.jpg").write_bytes(b"")
    (folder / "._p001.jpg").write_bytes(b"")
    assert main([str(folder), str(tmp_path / "out"), "--workers", "1", "--samples-per-shard", "1"]) == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[:4] == ["3 photos can be taken", "  captions 3, masks 0, labels 0, json 0", "1 left aside", lines[3]]
    assert lines[4] == "1 refused"
    assert "1 of 4 images cannot be used" in told.err
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_to_take_is_told_with_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "IMG_1.CR2").touch()
    (tmp_path / "film.mp4").touch()
    assert main([str(tmp_path), str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "no images that can be read there" in message
    assert "not used, ending in .mp4: film.mp4" in message
