"""The members of a tar, header after header, to its very end.

Python's tarfile reads single headers here, and no more: its own loop takes a damaged header for the end and zeros for
an empty tar, goes one call deeper for each long name in a row, and reads as many bytes as a header asks for.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK, _CHUNK = 512, 1 << 20
_END = 2 * _BLOCK  # zeros that end a tar
_RECORDS = (*range(_BLOCK, 10_241, _BLOCK), 1 << 14, 1 << 15, 1 << 16)  # bytes that a tar is filled up to a multiple of
_MAX_EXTENSION = 1 << 22  # bytes of long names and pax records before one member; macOS keeps attributes of files there
_MAX_EXTENSIONS = 16
_LONG_NAME, _PAX = (tarfile.GNUTYPE_LONGNAME,), (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_PASSED = (tarfile.GNUTYPE_LONGLINK, b"V")  # the target of a link, which is refused, and a label of the whole tar
_NUMBER = re.compile(rb"[1-9][0-9]{0,18}")
_MOVED = ("path", "size", "GNU.sparse.name")  # what no tar says of all its members at once


class SequentialFile:
    """Reads a stream once from its start, hashing every byte; what a seek leaves out is read too.

    Args:
        stream: anything with `read(size)`, such as a file or an HTTP response.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._position = 0
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of all bytes read so far."""
        return self._hash.hexdigest()

    def tell(self) -> int:
        """Bytes from the start."""
        return self._position

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        parts = []
        while size and (part := self._stream.read(size)):
            self._hash.update(part)
            parts.append(part)
            size -= len(part)
            self._position += len(part)
        return b"".join(parts)

    def seek(self, position: int) -> int:
        """Go on to a position; the end of the stream stops it.

        Raises:
            ValueError: if it lies behind.
        """
        if position < self._position:
            raise ValueError(f"expected to go on from byte {self._position}, got a seek to {position}")
        while self._position < position and self.read(min(_CHUNK, position - self._position)):
            pass
        return self._position


class Member(NamedTuple):
    """One member of a tar: its name, tar type (`0` a file, `5` a folder), and where its `size` bytes lie."""

    name: str
    kind: bytes
    offset: int
    size: int
    sparse: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is a plain file; links, devices and sparse files are none."""
        return self.kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and not self.sparse

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, which has no bytes."""
        return self.kind == tarfile.DIRTYPE


def begins_as_tar(path: str | Path) -> bool:
    """Whether a path is that of a plain file, links to one included, which begins with a member's header."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # without waiting, should it be a pipe
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return False
        tarfile.TarInfo.frombuf(os.pread(file, _BLOCK, 0), "utf-8", "surrogateescape")
        return True
    except (tarfile.TarError, ValueError):
        return False
    finally:
        os.close(file)


def read_members(file: Any, name: str) -> Iterator[Member]:
    """The members of an uncompressed tar, each as soon as its headers are read; names that are not UTF-8 get `%E9`.

    Args:
        file: the tar, at its start; needs read, tell and seek onwards. A caller may read each member's bytes.
        name: what error messages call it.

    Raises:
        ValueError: naming the tar and the byte, if it is damaged, cut short, appended to, or nothing but zeros; if it
            goes on after its last member with more zeros than those that fill up a tar's last record.
    """
    place = 0
    while True:
        here = place
        head, place, said = _read_head(file, name, place)
        if head is None:
            break
        member = _member(head, said, place)
        if not 0 <= member.size < 1 << 62:
            raise _damaged(name, here, f"a member of {said.get('size', member.size)!r} bytes")
        yield member
        if head.isreg() or head.type not in tarfile.SUPPORTED_TYPES:  # others have no bytes, whatever their header says
            place += _padded(member.size)
    _check_end(file, name, place)


def _read_head(file: Any, name: str, place: int) -> tuple[tarfile.TarInfo | None, int, dict[str, bytes]]:
    """The next member's header, None at the end; the byte after it; and what came before it: long name, pax records."""
    said: dict[str, bytes] = {}
    extensions, room = 0, _MAX_EXTENSION
    while True:
        head = _header(file, name, place)
        if head is None or head.type not in (*_LONG_NAME, *_PAX, *_PASSED):
            if head is None and extensions:
                raise _damaged(name, place, "an end after a header that belongs to a member")
            return head, place + _BLOCK * (head is not None), said
        extensions, room = extensions + (head.type != b"V"), room - head.size
        if head.size < 0 or room < 0 or extensions > _MAX_EXTENSIONS:
            limits = f"at most {_MAX_EXTENSIONS} of at most {_MAX_EXTENSION} bytes in all"
            raise _damaged(name, place, f"long names and pax headers before one member that are not {limits}")
        data = file.read(_padded(head.size))
        if len(data) < head.size:
            raise _cut_short(name, place)
        records = _records(data[: head.size], head.type, name, place)
        if head.type == tarfile.XGLTYPE and any(key in _MOVED for key in records):
            raise _damaged(name, place, f"a global pax header with one of {', '.join(_MOVED)}")
        said = records | said  # the first wins, as in tarfile
        place += _BLOCK + _padded(head.size)


def _header(file: Any, name: str, place: int) -> tarfile.TarInfo | None:
    """One header; None for a block of zeros, which is an end."""
    try:
        file.seek(place)
    except (OSError, OverflowError) as error:  # farther than any file is long
        raise _cut_short(name, place) from error
    block = file.read(_BLOCK)
    if place and len(block) < _BLOCK:
        raise _cut_short(name, place)
    if block.count(0) == _BLOCK:
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        if place:
            raise _damaged(name, place, f"no header: {error}") from error
        raise ValueError(f"{name}: expected an uncompressed tar, got another file: {error}") from error


def _records(data: bytes, kind: bytes, name: str, place: int) -> dict[str, bytes]:
    """What a long name or a pax header says."""
    if kind in _PASSED:
        return {}
    if kind in _LONG_NAME:
        return {"path": data.partition(b"\0")[0]}
    found: dict[str, bytes] = {}
    while data.strip(b"\0"):
        length = data[:20].partition(b" ")[0]
        record = data[: int(length)] if _NUMBER.fullmatch(length) else b""
        key, equals, value = record[len(length) + 1 :].partition(b"=")
        if not equals or not value.endswith(b"\n") or len(record) < int(length):
            raise _damaged(name, place, f"a pax header with {data[:40]!r}")
        found.setdefault(key.decode(errors="replace"), value[:-1])
        data = data[len(record) :]
    return found


def _member(head: tarfile.TarInfo, said: dict[str, bytes], offset: int) -> Member:
    """A header, and what was said before it."""
    size = head.size
    if (given := said.get("size")) is not None:
        size = int(given) if _NUMBER.fullmatch(given) or given == b"0" else -1
    text = said["path"].decode("utf-8", "surrogateescape") if "path" in said else head.name
    sparse = head.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in said)
    kind = tarfile.DIRTYPE if head.type == tarfile.AREGTYPE and text.endswith("/") else head.type
    if not text.isascii():
        text = re.sub("[\udc80-\udcff]", lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", text)
    return Member(text, kind, offset, size, sparse)


def _check_end(file: Any, name: str, end: int) -> None:
    """Refuse what does not end as tars do: two blocks of zeros, and more up to a whole record.

    A download whose room on the disk was reserved ahead ends in zeros too, in as many as are missing.
    """
    while chunk := file.read(_CHUNK):
        if chunk.count(0) < len(chunk):
            raise ValueError(f"{name}: the tar is corrupt, cut short or appended to after byte {end}")
    total = file.tell()
    if not end:
        raise ValueError(
            f"expected at least one sample, got none in {name}: all of its {total} bytes are zeros, as in a download "
            "that did not begin; get it again, or remove it"
        )
    zeros = total - end
    fills = any(zeros - _END < record for record in _RECORDS if total % record == 0)
    if total % _BLOCK or (zeros > _END and not fills):
        raise ValueError(
            f"{name}: the tar is corrupt, cut short or appended to after byte {end}: expected zeros up to a whole "
            f"record, of 10240 bytes say, got {zeros} zeros, as in a download that did not end; get it again"
        )


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _cut_short(name: str, place: int) -> ValueError:
    return ValueError(f"{name}: the tar is corrupt, cut short or appended to after byte {place}")


def _damaged(name: str, place: int, what: str) -> ValueError:
    return ValueError(f"{name}: the tar is corrupt, cut short or appended to after byte {place}: {what}")
