"""Ranks that are about to load different checkpoints, or a damaged one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inpaint_module.training.checkpoints import VerifiedCheckpointIO, read_seal
from inpaint_module.training.checks import Resumed, check_equal, gathered, look_at


def save(path: Path, step: int) -> Path:
    VerifiedCheckpointIO().save_checkpoint({"global_step": step}, path)
    return path


def test_equal_files_at_different_places_are_accepted(tmp_path: Path) -> None:
    first = save(tmp_path / "a.ckpt", 3)
    (tmp_path / "b.ckpt").write_bytes(first.read_bytes())
    for verify in (False, True):
        found = [look_at(path, verify=verify) for path in (first, tmp_path / "b.ckpt")]
        assert found[0].seal == f"(step 3, sha256 {read_seal(first).sha256[:16]})"
        check_equal(found)
    check_equal([look_at(None, verify=True)] * 2)
    check_equal([look_at("best", verify=True)] * 2)


def test_different_files_are_refused_by_name(tmp_path: Path) -> None:
    ranks = [look_at(save(tmp_path / f"{step}.ckpt", step), verify=False) for step in (3, 4)]
    with pytest.raises(ValueError, match=r"got rank 0: .*3\.ckpt \(step 3, sha256 .*; rank 1: .*4\.ckpt \(step 4, "):
        check_equal(ranks)
    with pytest.raises(ValueError, match=r"rank 0: no checkpoint; rank 1: .*3\.ckpt \(step 3"):
        check_equal([look_at(None, verify=False), ranks[0]])
    with pytest.raises(ValueError, match=r"rank 0: no checkpoint; rank 1: best\. Put"):
        check_equal([look_at(None, verify=False), look_at("best", verify=False)])


def test_a_flipped_bit_is_found_where_the_strategy_does_not_look(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", 3)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    check_equal([look_at(path, verify=False)])
    with pytest.raises(ValueError, match=r"^resume: checkpoint .*a\.ckpt: expected sha256 .* it is damaged"):
        check_equal([look_at(path, verify=True)])


@pytest.mark.parametrize("name", ["missing.ckpt", "folder", "short.ckpt", "http://host/a.ckpt"])
def test_what_cannot_be_loaded_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    save(tmp_path / "short.ckpt", 3)
    os.truncate(tmp_path / "short.ckpt", 100)
    path = name if ":" in name else tmp_path / name
    damaged = look_at(path, verify=True)
    with pytest.raises(ValueError, match=f"got rank 0: .*{name}.*; rank 1: .*{name}.* all hosts"):
        check_equal([damaged, damaged])
    with pytest.raises(ValueError, match=f"^resume: .*{name}") as error:  # nothing about ranks and hosts
        check_equal([damaged])
    assert "rank" not in str(error.value)
    assert "hosts" not in str(error.value)


def test_without_ranks_there_is_one() -> None:
    own = Resumed("a", "(step 1)", "")
    assert gathered(own) == [own]
