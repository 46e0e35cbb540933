"""Checkpoint files that are whole or refused: one file each, sealed by the sha256 of its bytes."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import time
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from inpaint_module.files import atomic_write

SEAL = re.compile(rb"(step:(\d{20}) (?:position:(\d{20}) )?time:(\d{20})) sha256:([0-9a-f]{64})")
SEAL_BYTES = len("step: position: time: sha256:") + 3 * 20 + 64
OLD_SEAL_BYTES = SEAL_BYTES - len(" position:") - 20  # before positions were in it
CHUNK_BYTES = 1 << 22
_VERIFIED: dict[Path, tuple[tuple[int, ...], Seal]] = {}  # chosen to go on from: each is hashed once, and loaded once


class Seal(NamedTuple):
    """The end of a checkpoint file, which `torch.load` and unzip take for the zip archive's comment."""

    step: int  # optimizer steps
    time: int  # when it was written, ns since 1970, by a clock that may have been wrong
    sha256: str  # of the archive as `torch.save` wrote it, and of what stands before
    position: int = 0  # in the stream of samples; 0 where the checkpoint holds none


class VerifiedCheckpointIO(CheckpointIO):
    """Saves a checkpoint so that a kill at any moment leaves the old file or the new one; loads only whole ones.

    Files are written by `atomic_write`: file and folder are on the disk before `save_checkpoint` returns.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write, seal, then move into place.

        Raises:
            ValueError: a path that is not local, or storage options.
            OSError: naming the file, such as on a full disk; the file that was there before is still there.
        """
        if storage_options is not None:
            raise ValueError(f"storage_options: expected none for a local file, got {storage_options!r}")
        path = local_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(path) as file:
                _write(checkpoint, file)
        except OSError as error:
            raise OSError(
                error.errno,
                f"checkpoint {path}: expected to write it, got {error.strerror}; the checkpoint before it is whole: "
                "make room, and the same command goes on from there",
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify, then read: tensors and plain values alone, whatever `weights_only` says.

        Raises:
            ValueError: naming the file, if it is not local, not whole, or was not written by this class.
        """
        path = local_path(path)
        with _opened(path) as file:
            if _known_seal(file, path) is None:  # else its bytes have just been hashed, to choose it
                _verify(file, path)
            _VERIFIED.pop(path.absolute(), None)
            file.seek(0)
            _know_quantized(file)
            # no function: tensors of subclasses, such as torchao's, take none
            return torch.load(file, map_location="cpu" if map_location is None else map_location, weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the file, if it is there."""
        local_path(path).unlink(missing_ok=True)


def newest_valid_checkpoint(*folders: Path) -> Path | None:
    """The checkpoint (`*.ckpt`, at any depth) of the latest step that verifies; None if there are no checkpoints.

    Of one step, the one of the latest position in the stream; clocks, which may be wrong, count for nothing. Prints a
    line for each one that it refuses on the way.

    Raises:
        ValueError: there are checkpoints, but none verifies: a run never starts from scratch in silence.
    """
    paths = {path for folder in folders for path in folder.rglob("*.ckpt")}
    refused = []
    for path in sorted(paths, key=_age):
        try:
            with _opened(path) as file:
                seal = _known_seal(file, path) or _verify(file, path)
                _VERIFIED[path.absolute()] = _signature(file), seal
            return path
        except (ValueError, OSError) as error:
            refused.append(str(error))
            rank_zero_info(f"resume: refused {error}")
    if refused:
        raise ValueError(
            f"expected a checkpoint that verifies in {', '.join(map(str, folders))}, got {len(refused)} that do not: "
            f"{'; '.join(refused)}. To start anew, delete or rename them"
        )
    return None


def verify_checkpoint(path: Path) -> Seal:
    """The seal of a file whose bytes are those that were saved; reads all of it.

    Raises:
        ValueError: naming the file, if it is not whole, is a folder, or was not written by `VerifiedCheckpointIO`.
    """
    with _opened(path) as file:
        return _verify(file, path)


def read_seal(path: Path) -> Seal:
    """What the end of the file says; whether it is true, only its sha256 tells.

    Raises:
        ValueError: naming the file, if it has no seal.
    """
    with _opened(path) as file:
        return _known_seal(file, path) or _parse_seal(file, path)[0]


def read_plain(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that was verified, for its plain values: tensors stay on the disk until used."""
    with path.open("rb") as file:
        _know_quantized(file)
    found: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return found


def _know_quantized(file: BinaryIO) -> None:
    """Import torchao where an optimizer of it has written into the checkpoint, which tells torch.load its classes.

    Raises:
        ValueError: it is not installed.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    file.seek(0)
    if any(name.startswith("torchao.") for name in names):
        try:
            import_module("torchao.optim")
        except ImportError as error:
            raise ValueError(
                "checkpoint: expected torchao, whose optimizer has written it, got no such package: pip install "
                "'inpaint-module[torchao]'"
            ) from error


def local_path(path: str | Path) -> Path:
    """The path of a file on this machine.

    Raises:
        ValueError: a URL.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(path)):
        raise ValueError(f"checkpoint {path}: expected a local path, got a URL: download it first")
    return Path(path)


def _signature(file: BinaryIO) -> tuple[int, ...]:
    """What changes with the bytes of an open file."""
    state = os.fstat(file.fileno())
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _known_seal(file: BinaryIO, path: Path) -> Seal | None:
    """The seal of a file that this process has chosen and not loaded yet; None for others, and once it has changed."""
    signature, seal = _VERIFIED.get(path.absolute(), ((), None))
    return seal if signature == _signature(file) else None


def _opened(path: Path) -> BinaryIO:
    if path.is_dir():
        raise ValueError(
            f"checkpoint {path}: expected one file, got a folder: no sha256 covers it, as with "
            "save_distributed_checkpoint: true; name a file in it, such as last.ckpt, or train with false"
        )
    return path.open("rb")


class _HashingWriter:
    """A file that is hashed as it is written, so that what the disk makes of it is checked too."""

    def __init__(self, file: BinaryIO):
        self.file, self.hash = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error  # torch says only that a write failed, not why
            raise

    def flush(self) -> None:
        self.file.flush()


def _write(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    """Archive, then seal."""
    writer = _HashingWriter(file)
    try:
        torch.save(checkpoint, writer)  # type: ignore[arg-type]
    except RuntimeError as error:
        if writer.error is None:
            raise
        raise writer.error from error
    step, position = checkpoint.get("global_step", 0), _position(checkpoint)
    head = f"step:{step:020d} position:{position:020d} time:{time.time_ns():020d}".encode()
    writer.hash.update(head)
    file.seek(-2, os.SEEK_END)  # an archive ends with the length of its comment
    file.write(struct.pack("<H", SEAL_BYTES) + head + b" sha256:" + writer.hash.hexdigest().encode())


def _position(checkpoint: dict[str, Any]) -> int:
    """That of the data module, the only part with one."""
    states = (state for state in checkpoint.values() if isinstance(state, dict))
    return max((state["position"] for state in states if isinstance(state.get("position"), int)), default=0)


def _parse_seal(file: BinaryIO, path: Path) -> tuple[Seal, bytes]:
    """The seal, and the part of it that is hashed."""
    size = file.seek(0, os.SEEK_END)
    for length in (SEAL_BYTES, OLD_SEAL_BYTES):
        file.seek(max(0, size - length - 2))
        written, text = file.read(2), file.read()
        found = SEAL.fullmatch(text)
        if found is not None and written == struct.pack("<H", length):
            return Seal(int(found[2]), int(found[4]), found[5].decode(), int(found[3] or 0)), found[1]
    raise ValueError(f"checkpoint {path}: expected a sha256 at its end, got none: cut short, or not of this program")


def _verify(file: BinaryIO, path: Path) -> Seal:
    """Refuse a file that differs in any bit from what was saved."""
    seal, head = _parse_seal(file, path)
    left = file.tell() - len(head) - len(" sha256:") - 64 - 2
    digest = hashlib.sha256()
    file.seek(0)
    while left > 0:
        chunk = file.read(min(left, CHUNK_BYTES))
        digest.update(chunk)
        left -= len(chunk) or left  # shrinks under our hands: the digest will tell
    digest.update(b"\0\0" + head)
    if digest.hexdigest() != seal.sha256:
        raise ValueError(f"checkpoint {path}: expected sha256 {seal.sha256}, got {digest.hexdigest()}: it is damaged")
    return seal


def _age(path: Path) -> tuple[int, int, bool, str]:
    """Sorts the newest first, and those that cannot be read before all, so that they are named.

    Of equal ones, that of `save_last` goes before, which a ModelCheckpoint writes last.
    """
    try:
        seal = read_seal(path)
        return -seal.step, -seal.position, not path.name.startswith("last"), str(path)
    except (ValueError, OSError):
        return -(10**20), 0, False, str(path)
