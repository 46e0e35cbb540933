"""How files are written: whole or not at all, and without secrets.

The one place for temporary names, syncing and replacing, and for redaction: what is shown, or recorded for others to
read, loses the secrets in its addresses and options.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
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
    from PIL import Image

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


HIDDEN = "***"
PRIVATE, SHARED = 0o600, 0o666  # permissions of files, less the umask

_SECRET_ENDS = (
    *("secret", "token", "password", "passwd", "passphrase", "pwd", "credential", "credentials", "authorization"),
    *("sig", "signature", "api_key", "apikey", "access_key", "secret_key", "private_key", "account_key"),
)
_NAME = r"(?:[\w.-]*[_.-])?(?:" + "|".join(end.replace("_", "[_-]?") for end in _SECRET_ENDS) + ")"
_SECRET_NAME = re.compile(f"[-]*{_NAME}", re.IGNORECASE)
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NO_SECRET = re.compile(r"|null|none|true|false|[0-9.+-]+", re.IGNORECASE)
_REST = r"[^\s\"'<>`]*?(?=[:,;.)\]}]*(?:[\s\"'<>`]|$))"  # of an address in a text, without the stops after it
_RULES = (
    # user:password@, however many of them
    (re.compile(r"://[^\s/?#\"'<>`]*@"), "://"),
    # a password with a character that ends the host's part of an address: no host has such a port
    (re.compile(rf"://(?!\[)[^\s/?#\"'<>`:]*:(?![0-9{{}},.]*(?:[\s/?#\"'<>`:,;)\]]|$)){_REST}"), f"://{HIDDEN}"),
    # the query and the fragment
    (re.compile(rf"(://[^\s?#\"'<>`]*)[?#]{_REST}"), r"\1"),
    # name=value, "name": "value" and, a line to itself, name: value
    (re.compile(rf"((?<![\w.]){_NAME}=)(?!\"|')[^\s&,;)\]}}\"']+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(rf"((?<![\w.]){_NAME}=)(\"[^\"]*\"|'[^']*')", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(rf"(([\"']){_NAME}\2\s*:\s*)(\"[^\"]*\"|'[^']*')", re.IGNORECASE), rf"\1\2{HIDDEN}\2"),
    (
        re.compile(rf"^(\s*(?:- )?{_NAME}:[ ]+)(?!(?:null|true|false|[0-9.]+)\s*$)(?!\*)\S+\s*$", re.I | re.M),
        rf"\1{HIDDEN}",
    ),
    # what a header says, and tokens that are known by their form
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    (
        re.compile(
            r"(\b(?:(?:Proxy-)?Authorization|X-[\w-]*(?:Key|Token)): *)(?!Bearer\b|Basic\b)(?:token +)?[^\s\"',;]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}|\b(?:gh[oprsu]|github_pat)_\w{16,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
    (re.compile(r"\bsk-[\w-]{20,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bwandb_v\d_\w{16,}"), HIDDEN),
)


def redact(text: str) -> str:
    """A text without the secrets in it.

    Addresses (`scheme://...`) lose `user:password@`, their query and their fragment; values of names that end with
    token, secret, password, signature, api_key and the like become `***`, as do what headers of authorization say and
    the tokens of Hugging Face, GitHub, Weights & Biases, AWS and others that are known by their form. A local path and
    all other text stay as they are.
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def is_secret(name: str) -> bool:
    """Whether a value of this name is a secret: `api_key`, `--data.token`, `secretKey`; not `label_key`."""
    return _SECRET_NAME.fullmatch(_CAPITAL.sub("_", name)) is not None


def redacted(value: Any) -> Any:
    """Nested dicts, lists and tuples without their secrets: texts as by `redact`, `***` for values of secret names."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        pairs = {str(name).lower() for name in value}
        secret = {name for name in value if is_secret(str(name)) or (name == "key" and "secret" in pairs)}
        return {redacted(n): _hidden(v) if n in secret else redacted(v) for n, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(redacted, value)) if type(value) in (list, tuple) else list(map(redacted, value))
    return value


def _hidden(value: Any) -> Any:
    """A secret, or several; numbers, and words such as null, are none."""
    if isinstance(value, Mapping):
        return {name: _hidden(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_hidden, value))
    return value if not isinstance(value, str) or _NO_SECRET.fullmatch(value) else HIDDEN


def redacted_command(arguments: Sequence[str]) -> list[str]:
    """A command line without its secrets: also the value that follows an option such as `--logger.api_key`."""
    return list(_redacted_arguments(arguments))


def _redacted_arguments(arguments: Sequence[str]) -> Iterator[str]:
    follows = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if follows and not argument.startswith("--"):
            yield _hidden(argument)
        elif equals and name.startswith("-") and is_secret(name):
            yield f"{name}={_hidden(value)}"
        else:
            yield redact(argument)
        follows = not equals and name.startswith("-") and is_secret(name)


def permissions_for(text: str) -> int:
    """Of a file that must hold this text as it is: its owner's alone if there are secrets in it, else everybody's."""
    return SHARED if redact(text) == text else PRIVATE
