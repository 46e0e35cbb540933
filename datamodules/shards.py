"""Shards: random access to the samples of webdataset tars, any sample one `pread` away."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.manifest import Shard, load_index
from datamodules.tar_index import ShardIndex

_OPEN_SHARDS = 64


class RawSample(NamedTuple):
    """One sample's undecoded fields, and the position in the stream that asked for it.

    `donor` is another sample, whose object mask goes onto this one's image; most samples have none. `size` is the
    target, (H, W) pixels, of a sample that gets another than the data module's.
    """

    shard: str
    key: str
    fields: dict[str, bytes]
    position: int = -1
    donor: RawSample | None = None
    size: tuple[int, int] | None = None


class ShardSet:
    """Random access to the samples of several shards, numbered 0..n-1 through the shards in their order.

    Holds at most 64 open files; `os.pread` shares no file offset, so that forked workers may use the same ones.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self.counts = [shard.count for shard in self.shards]
        self.starts = [0, *accumulate(self.counts)]
        self._open: OrderedDict[int, tuple[int, ShardIndex]] = OrderedDict()
        if not len(self):
            raise ValueError(f"expected at least one sample, got none in {[shard.path for shard in self.shards]}")

    def __len__(self) -> int:
        return self.starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for file, _ in getattr(self, "_open", {}).values():
            os.close(file)

    @property
    def fingerprint(self) -> str:
        """sha256 over every shard's file name, count, size and digest, in order; folders do not count."""
        rows = [[Path(s.path).name, s.count, s.bytes, s.digest] for s in self.shards]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def _shard(self, number: int) -> tuple[int, ShardIndex]:
        if number not in self._open:
            while len(self._open) >= _OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1][0])
            shard = self.shards[number]
            self._open[number] = (os.open(shard.path, os.O_RDONLY), load_index(shard))
        self._open.move_to_end(number)
        return self._open[number]

    def read(self, sample: int) -> RawSample:
        """The fields of sample number `sample`.

        Raises:
            OSError: if the shard ends before the sample does.
        """
        number = bisect_right(self.starts, sample) - 1
        file, index = self._shard(number)
        path, row = self.shards[number].path, sample - self.starts[number]
        fields = {name: os.pread(file, size, offset) for name, (offset, size) in index.fields[row].items()}
        short = [name for name, (_, size) in index.fields[row].items() if len(fields[name]) != size]
        if short:
            raise OSError(f"{path}: sample {index.keys[row]!r}: the file ends inside its fields {short}")
        return RawSample(path, index.keys[row], fields)
