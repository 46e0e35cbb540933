"""ShardWriter: samples into numbered tars, the same bytes for the same samples."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


class ShardWriter:
    """Writes samples into numbered tars, a new one whenever the next sample would not fit.

    Until `publish` they are called NUMBER.tar.part, so that a killed run leaves nothing that looks finished.

    Args:
        folder: where the tars go.
        shard_bytes: start a new tar before it grows over this.
        samples_per_shard: start a new tar after so many samples; None for no limit.
    """

    def __init__(self, folder: Path, shard_bytes: int, samples_per_shard: int | None) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.samples_per_shard = samples_per_shard
        self.paths: list[Path] = []
        self._tar: tarfile.TarFile | None = None
        self._samples = 0

    def close(self) -> None:
        """End the tar in work."""
        if self._tar is not None:
            self._tar.close()
        self._tar = None

    def publish(self) -> None:
        """Give the tars their names."""
        self.close()
        for path in self.paths:
            path.replace(path.with_suffix(""))

    def discard(self) -> None:
        """Remove the tars."""
        self.close()
        for path in self.paths:
            path.unlink()

    def _tar_for(self, size: int) -> tarfile.TarFile:
        if self._tar is not None:
            full = self._tar.offset + size > self.shard_bytes or self._samples == self.samples_per_shard
            if not full:
                return self._tar
            self.close()
        self.paths.append(self.folder / f"{len(self.paths):06d}.tar.part")
        self._tar = tarfile.open(self.paths[-1], "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        self._samples = 0
        return self._tar

    def write(self, key: str, fields: dict[str, bytes]) -> None:
        """Add one sample, its fields sorted by name, without times or owners."""
        tar = self._tar_for(sum(len(data) + 1024 for data in fields.values()))
        for field, data in sorted(fields.items()):
            member = tarfile.TarInfo(f"{key}.{field}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        self._samples += 1
