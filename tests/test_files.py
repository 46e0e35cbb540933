"""Files that are written whole or not at all."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest
from PIL import Image

from inpaint_module.files import (
    append_lines,
    atomic_folder,
    atomic_write,
    atomic_write_picture,
    atomic_write_text,
    check_replaceable,
    locked,
    set_aside,
)


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    atomic_write_text(path, "old")
    with pytest.raises(TypeError, match="bytes-like"), atomic_write(path) as file:
        file.write("text")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["record.json"]


def test_file_then_folder_reach_the_disk_around_the_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    atomic_write_text(tmp_path / "record.json", "new")
    assert steps == ["file", "replace", "folder"]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "record.json.tmp").symlink_to(other)
    atomic_write_text(tmp_path / "record.json", "new")
    assert (other.read_text(), (tmp_path / "record.json").read_text()) == ("mine", "new")


@pytest.mark.parametrize("text", ["mine", None])
def test_a_link_in_the_place_of_a_lock_is_refused(text: str | None, tmp_path: Path) -> None:
    other = tmp_path / "other"
    if text is not None:
        other.write_text(text)
    (tmp_path / "lock").symlink_to(other)
    with pytest.raises(ValueError, match=r"lock: expected a file to lock, got a link"), locked(tmp_path / "lock"):
        pass
    assert (other.read_text() if other.exists() else None) == text


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), (tmp_path / "lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_private_files_are_their_owners_alone(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "secret", "new", permissions=0o600)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()
    with pytest.raises(FileNotFoundError), atomic_folder(out) as part:
        (part / "half" / "file").write_text("there is no such folder")
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(out) == []
    (tmp_path / ".model.unfinished").mkdir()  # as a kill leaves it
    (tmp_path / ".model.unfinished" / "half").touch()
    with atomic_folder(out) as part:
        (part / "deep").mkdir()
        (part / "deep" / "whole").touch()
        assert os.listdir(out) == []
    assert os.listdir(tmp_path) == ["model"]
    assert [path.name for path in out.rglob("*")] == ["deep", "whole"]


def test_lines_are_appended_and_one_that_was_cut_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_lines(path, "one\n")
    append_lines(path, "two\nthr")
    append_lines(path, "four\n")
    assert path.read_text() == "one\ntwo\nthr\nfour\n"


def test_nothing_that_was_set_aside_is_replaced(tmp_path: Path) -> None:
    for content in "abc":
        (tmp_path / "file").write_text(content)
        set_aside(tmp_path / "file", "old")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "file.old": "a",
        "file.old-2": "b",
        "file.old-3": "c",
    }


def test_pictures_are_of_the_format_of_their_name(tmp_path: Path) -> None:
    picture = Image.new("RGB", (2, 2))
    for name, kind in {"a.png": "PNG", "b.JPG": "JPEG"}.items():
        atomic_write_picture(tmp_path / name, picture)
        with Image.open(tmp_path / name) as written:
            assert written.format == kind
    with pytest.raises(ValueError, match=r"c\.txt: expected a name that ends with a picture format"):
        atomic_write_picture(tmp_path / "c.txt", picture)
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.JPG"]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff"])
def test_only_an_earlier_result_of_the_same_command_is_replaced(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    check_replaceable(path, "inpaint masks")
    for maker in (None, "inpaint doctor", "inpaint masks"):
        atomic_write_picture(path, Image.new("RGB", (8, 8)), maker)
        if maker != "inpaint masks":
            with pytest.raises(ValueError, match="is there already and was not written by inpaint masks; move it"):
                check_replaceable(path, "inpaint masks")
    check_replaceable(path, "inpaint masks")
    path.write_text("notes about inpaint masks")
    for each in (path, tmp_path):
        with pytest.raises(ValueError, match="is there already"):
            check_replaceable(each, "inpaint masks")
