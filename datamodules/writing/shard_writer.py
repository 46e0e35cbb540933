"""ShardWriter: samples into numbered tars, the same bytes for the same samples."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

from datamodules.shards.tar_index import ScannedTar, ShardIndex

PART = ".part"  # until a set is complete its tars are called NUMBER.tar.part


class _HashedFile(io.FileIO):
    """A file written once from its start; hashes what is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.sha256.update(data)
        view = memoryview(data)
        while view:
            view = view[super().write(view) :]
        return len(data)


class ShardWriter:
    """Writes samples into numbered tars, a new one whenever the next sample would not fit.

    A tar that is returned as finished is on the disk; it is called NUMBER.tar.part, so that a reader does not take it
    for one of a complete set.

    Args:
        folder: where the tars go.
        shard_bytes: start a new tar before it grows over this.
        samples_per_shard: start a new tar after so many samples; None for no limit.
        number: of the first tar.
    """

    def __init__(self, folder: Path, shard_bytes: int, samples_per_shard: int | None, *, number: int = 0) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.samples_per_shard = samples_per_shard
        self.number = number
        self._file: _HashedFile | None = None
        self._tar: tarfile.TarFile | None = None
        self._index = ShardIndex([], [], [])

    @property
    def name(self) -> str:
        """What the tar in work will be called."""
        return f"{self.number:06d}.tar"

    def write(self, key: str, fields: Mapping[str, bytes], size: tuple[int, int]) -> tuple[str, ScannedTar] | None:
        """Add one sample, its fields sorted by name, without times or owners.

        Returns:
            The name and content of the tar that this sample did not fit into any more, if any.
        """
        finished = None
        if self._tar is not None and self._is_full(sum(len(data) + 1024 for data in fields.values())):
            finished = self.finish()
        if self._tar is None:
            self._file = _HashedFile(self.folder / (self.name + PART))
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        places = {field: self._add(self._tar, f"{key}.{field}", data) for field, data in sorted(fields.items())}
        self._index.keys.append(key)
        self._index.fields.append(places)
        if self._index.sizes is not None:
            self._index.sizes.append(size)
        return finished

    def _is_full(self, size: int) -> bool:
        assert self._tar is not None
        return self._tar.offset + size > self.shard_bytes or len(self._index.keys) == self.samples_per_shard

    def _add(self, tar: tarfile.TarFile, name: str, data: bytes) -> tuple[int, int]:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        start = tar.offset + len(member.tobuf(tarfile.GNU_FORMAT))
        tar.addfile(member, io.BytesIO(data))
        tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every header in memory
        return start, len(data)

    def finish(self) -> tuple[str, ScannedTar] | None:
        """End the tar in work and bring it to the disk; its name and content, None if there is none."""
        if self._tar is None or self._file is None:
            return None
        self._tar.close()
        os.fsync(self._file.fileno())
        scanned = ScannedTar(self._index, self._file.tell(), self._file.sha256.hexdigest())
        finished = (self.name, scanned)
        self.close()
        self.number += 1
        return finished

    def close(self) -> None:
        """Leave the tar in work as it is."""
        if self._file is not None:
            self._file.close()
        self._file, self._tar, self._index = None, None, ShardIndex([], [], [])
