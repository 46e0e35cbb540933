"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from inpaint_module.files import atomic_write, atomic_write_text


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


def test_private_files_are_their_owners_alone(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "secret", "new", permissions=0o600)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
