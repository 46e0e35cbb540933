"""Checkpoint files: whole or refused, whatever cut the writing short."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inpaint_module.training import checkpoints as checkpoint_io
from inpaint_module.training.checkpoints import (
    Seal,
    VerifiedCheckpointIO,
    local_path,
    newest_valid_checkpoint,
    read_seal,
    verify_checkpoint,
)


def dying(function: Callable[..., Any], *, before: bool = True) -> Callable[..., Any]:
    """Kills its process when it is called, or after it has done what it does."""

    def call(*arguments: Any) -> None:
        if not before:
            function(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    return call


def half_saved(data: object, file: Any, whole: Callable[..., None] = torch.save) -> None:
    """Half of an archive, and death."""
    whole(data, file)
    file.flush()
    file.file.truncate(file.file.tell() // 2)
    os.kill(os.getpid(), signal.SIGKILL)


DEATHS: dict[str, tuple[Any, str, Callable[..., Any]]] = {  # where a save dies
    "archive": (checkpoint_io.torch, "save", half_saved),
    "seal": (checkpoint_io.struct, "pack", dying(struct.pack)),
    "sync": (checkpoint_io.os, "fsync", dying(os.fsync)),
    "replace": (checkpoint_io.os, "replace", dying(os.replace)),
    "replaced": (checkpoint_io.os, "replace", dying(os.replace, before=False)),
}


def checkpoint(step: int = 1) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": torch.arange(1000) + step}}


def save(path: Path, step: int = 1) -> Path:
    VerifiedCheckpointIO().save_checkpoint(checkpoint(step), path)
    return path


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def test_saves_and_loads(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "a.ckpt", 7)
    loaded = VerifiedCheckpointIO().load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["weight"], checkpoint(7)["state_dict"]["weight"])
    assert read_seal(path).step == 7
    assert [entry.name for entry in path.parent.iterdir()] == ["a.ckpt"]
    VerifiedCheckpointIO().remove_checkpoint(path)
    VerifiedCheckpointIO().remove_checkpoint(path)
    assert not path.exists()


def test_the_file_is_an_ordinary_checkpoint_too(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt")
    assert torch.load(path, weights_only=True)["global_step"] == 1
    assert torch.load(path, weights_only=True, mmap=True)["state_dict"]["weight"][-1] == 1000
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"step:00000000000000000001 position:")


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt")
    size = path.stat().st_size
    for byte in [*range(0, size - 300, 97), *range(size - 300, size)]:
        flip(path, byte)
        with pytest.raises(ValueError, match=r"a\.ckpt: expected"):
            VerifiedCheckpointIO().load_checkpoint(path)
        flip(path, byte)
    VerifiedCheckpointIO().load_checkpoint(path)


@pytest.mark.parametrize("left", [0, 1, 50, 0.5, -1])
def test_truncated_files_are_refused(left: float, tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt")
    size = path.stat().st_size
    os.truncate(path, int(left * size) if isinstance(left, float) else left % size)
    with pytest.raises(ValueError, match="expected a sha256 at its end, got none: cut short, or not of this program"):
        VerifiedCheckpointIO().load_checkpoint(path)


def test_checkpoints_of_others_are_refused(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="not of this program"):
        VerifiedCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("false",)


def test_code_in_a_checkpoint_never_runs(tmp_path: Path) -> None:
    VerifiedCheckpointIO().save_checkpoint({"bomb": Bomb()}, tmp_path / "a.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        VerifiedCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)


@pytest.mark.parametrize("url", ["http://host/a.ckpt", "https://host/a.ckpt", "s3://bucket/a.ckpt", "file:///a.ckpt"])
def test_urls_are_refused(url: str) -> None:
    io = VerifiedCheckpointIO()
    for call in (io.load_checkpoint, io.remove_checkpoint, local_path, lambda path: io.save_checkpoint({}, path)):
        with pytest.raises(ValueError, match="expected a local path, got a URL"):
            call(url)


def test_storage_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="storage_options: expected none"):
        VerifiedCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={})


def test_tmpdir_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    monkeypatch.setattr("tempfile.tempdir", None)
    save(tmp_path / "a.ckpt")


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.ckpt", 1)

    def full_disk(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_io.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(path, 2)
    assert VerifiedCheckpointIO().load_checkpoint(path)["global_step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; torch says only `enforce fail at inline_container`."""
    path, before = tmp_path / "a.ckpt", resource.getrlimit(resource.RLIMIT_FSIZE)
    VerifiedCheckpointIO().save_checkpoint({"global_step": 1}, path)
    old, handler = path.read_bytes(), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(OSError, match=r"checkpoint .*a\.ckpt: expected to write it, got File too large; the"):
            VerifiedCheckpointIO().save_checkpoint({"w": torch.rand(1 << 19)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    for name, (owner, function, death) in DEATHS.items():
        save(tmp_path / name / "a.ckpt", 1)
        if not (child := os.fork()):
            setattr(owner, function, death)
            try:
                save(tmp_path / name / "a.ckpt", 2)
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, name
        step = 2 if name == "replaced" else 1
        found = newest_valid_checkpoint(tmp_path / name)
        assert found == tmp_path / name / "a.ckpt"
        assert VerifiedCheckpointIO().load_checkpoint(found)["global_step"] == step
        assert (tmp_path / name / "a.ckpt.tmp").exists() == (step == 1)
        save(found, 3)  # the next save takes the place of what was left
        assert list(found.parent.iterdir()) == [found]


def test_the_name_reaches_the_disk_after_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the folder, a power cut takes a checkpoint away that `save_checkpoint` has promised."""
    synced: list[tuple[str, bool]] = []
    path, fsync = tmp_path / "a.ckpt", os.fsync

    def recorded(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    save(path)
    assert synced == [(str(tmp_path / "a.ckpt.tmp"), False), (str(tmp_path), True)]


def test_the_latest_step_is_the_newest_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that was years ahead, and one that stands still; a copy has any time."""
    assert newest_valid_checkpoint(tmp_path, tmp_path / "nowhere") is None
    monkeypatch.setattr(checkpoint_io.time, "time_ns", lambda: 2 * 10**18)
    save(tmp_path / "last.ckpt", 9)
    monkeypatch.setattr(checkpoint_io.time, "time_ns", lambda: 10**18)
    path = save(tmp_path / "deeper" / "epoch=0-val" / "x=1.ckpt", 10)
    os.utime(path, (0, 0))
    assert newest_valid_checkpoint(tmp_path) == path


def test_of_one_step_the_latest_position_is_the_newest_and_then_last(tmp_path: Path) -> None:
    for name, position in {"z": 40, "a": 48, "b": 47}.items():
        data = {"position": position, "seed": 0}
        VerifiedCheckpointIO().save_checkpoint(checkpoint(3) | {"Data": data}, tmp_path / f"{name}.ckpt")
    assert newest_valid_checkpoint(tmp_path) == tmp_path / "a.ckpt"
    assert read_seal(tmp_path / "a.ckpt").position == 48
    last = tmp_path / "last.ckpt"
    last.write_bytes((tmp_path / "a.ckpt").read_bytes())
    assert newest_valid_checkpoint(tmp_path) == last


def test_checkpoints_of_the_first_release_are_read(tmp_path: Path) -> None:
    """Their seal has no position; written as that release did."""
    path, head = tmp_path / "old.ckpt", b"step:%020d time:%020d" % (7, 10**18)
    torch.save(checkpoint(7), path)
    data = path.read_bytes()
    digest = hashlib.sha256(data + head).hexdigest().encode()
    path.write_bytes(data[:-2] + struct.pack("<H", 123) + head + b" sha256:" + digest)
    assert verify_checkpoint(path) == Seal(7, 10**18, digest.decode(), 0)
    assert VerifiedCheckpointIO().load_checkpoint(path)["global_step"] == 7
    save(tmp_path / "new.ckpt", 6)
    assert newest_valid_checkpoint(tmp_path) == path
    flip(path, 100)
    with pytest.raises(ValueError, match="it is damaged"):
        verify_checkpoint(path)


def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    old, middle = save(tmp_path / "a.ckpt", 1), save(tmp_path / "b.ckpt", 2)
    new = save(tmp_path / "c.ckpt", 3)
    flip(new, 1000)
    os.truncate(middle, 100)
    (tmp_path / "link.ckpt").symlink_to("nowhere")
    assert newest_valid_checkpoint(tmp_path) == old


def test_none_that_verifies_is_an_error(tmp_path: Path) -> None:
    flip(save(tmp_path / "a.ckpt"), 1000)
    with pytest.raises(ValueError, match=r"got 1 that do not: .*a\.ckpt: expected sha256 .* To start anew, delete"):
        newest_valid_checkpoint(tmp_path)


def test_refusals_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(checkpoint_io, "rank_zero_info", told.append)
    save(tmp_path / "a.ckpt", 1)
    time.sleep(0.001)
    flip(save(tmp_path / "b.ckpt", 2), 1000)
    newest_valid_checkpoint(tmp_path)
    assert len(told) == 1
    assert "resume: refused checkpoint" in told[0]
    assert "b.ckpt" in told[0]


def test_verify_tells_the_seal_and_refuses_folders(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", 7)
    assert verify_checkpoint(path) == read_seal(path)
    with pytest.raises(ValueError, match="expected one file, got a folder: no sha256 covers it"):
        verify_checkpoint(tmp_path)


def test_what_was_chosen_is_hashed_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, hashed = save(tmp_path / "a.ckpt", 7), []
    verify = checkpoint_io._verify
    monkeypatch.setattr(checkpoint_io, "_verify", lambda file, path: hashed.append(path) or verify(file, path))
    for _ in range(2):
        assert newest_valid_checkpoint(tmp_path) == path
        assert read_seal(path).step == 7
    VerifiedCheckpointIO().load_checkpoint(path)
    assert hashed == [path]
    VerifiedCheckpointIO().load_checkpoint(path)
    assert len(hashed) == 2
    newest_valid_checkpoint(tmp_path)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match="it is damaged"):
        VerifiedCheckpointIO().load_checkpoint(path)
