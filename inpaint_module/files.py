"""Files that are written whole or not at all: the one place for temporary names, syncing and replacing."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO

from PIL import Image

_SOFTWARE = 0x0131  # of EXIF: the program that made a picture


@contextmanager
def atomic_write(path: Path, *, permissions: int = 0o666) -> Iterator[BinaryIO]:
    """Open a new binary file that takes the place of `path` when the block ends without an error.

    A kill at any moment leaves the old file or the new one. The temporary file, `<name>.tmp`, lies in the same folder:
    a rename across file systems is a copy, and half a copy is no file. One that an earlier kill has left is replaced,
    and a link of that name is not followed. File and folder are on the disk when the block has ended.

    Args:
        path: the file; its folder exists.
        permissions: of the new file, less the umask; 0o600 for what only its owner may read.

    Raises:
        OSError: if writing fails, such as on a full disk; the old file is still there then.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, permissions)
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # such as a full disk, or Ctrl-C
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def atomic_write_text(path: Path, text: str, *, permissions: int = 0o666) -> None:
    """Write a small UTF-8 file as `atomic_write` does."""
    with atomic_write(path, permissions=permissions) as file:
        file.write(text.encode())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an empty file, made if it is not there, that only one process at a time can hold; wait for that.

    Raises:
        ValueError: if the file cannot be opened, or a link lies in its place, which is not followed.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        kind = "a link" if path.is_symlink() else f"an error ({error.strerror})"
        raise ValueError(f"{path}: expected a file to lock, got {kind}; remove it, or name another folder") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)  # though a forked child may still have it open
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: a new or replaced file is there after a power cut only then."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a folder that takes the place of `path`, nothing or an empty folder, when the block ends without an error.

    Until then it is `.<name>.unfinished` beside it. One of that name that an earlier kill has left is removed.
    """
    path = path.resolve()
    part = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(path.parent)


def append_lines(path: Path, lines: str) -> None:
    """Append whole lines to a text file, new or not, by a single write, so that several processes may share it.

    Where the last line was cut short, by a full disk say, it stays alone.
    """
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        cut = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write(("\n" * bool(cut) + lines).encode())


def set_aside(path: Path, suffix: str) -> Path:
    """Rename a file or folder that nobody reads any more to `<name>.<suffix>`, or `-2`, `-3`; returns the new path."""
    names = chain([f"{path.name}.{suffix}"], (f"{path.name}.{suffix}-{number}" for number in count(2)))
    target = next(each for each in map(path.with_name, names) if not os.path.lexists(each))
    path.rename(target)
    sync_folder(path.parent)
    return target


def atomic_write_picture(path: Path, picture: Image.Image, maker: str | None = None) -> None:
    """Write a picture in the format that its name ends with, as `atomic_write` does.

    Args:
        path: the file.
        picture: any that the format takes.
        maker: goes into its EXIF as `Software`, for `check_replaceable`; formats without EXIF do not keep it.

    Raises:
        ValueError: a name whose end tells no format.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: expected a name that ends with a picture format such as .png, got {path.name}")
    exif = Image.Exif()
    if maker is not None:
        exif[_SOFTWARE] = maker
    with atomic_write(path) as file:
        picture.save(file, kind, exif=exif)


def check_replaceable(path: Path, maker: str) -> None:
    """Refuse to write over a file that another program or the user made.

    Args:
        path: to be written; fine if there is nothing yet.
        maker: the command. Its PNGs name it as their text `Software`, its other pictures in their EXIF, its pages as
            their generator.

    Raises:
        ValueError: if a file or folder is there that does not name it.
    """
    if not os.path.lexists(path):
        return
    content = path.read_bytes() if path.is_file() else b""
    marks = (f"tEXtSoftware\0{maker}", f"{maker}\0", f'<meta name="generator" content="{maker}">')
    if not any(mark.encode() in content for mark in marks):
        raise ValueError(f"{path}: it is there already and was not written by {maker}; move it or choose another name")
