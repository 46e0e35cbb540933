"""Random access to the samples of webdataset tars, any sample one `pread` away; what samples have beside images."""

from __future__ import annotations

import hashlib
import json
import os
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.account import Account
from datamodules.shards.local_files import release
from datamodules.shards.manifest import Shard, load_index
from datamodules.shards.shard_cache import CacheFullError, ShardCache
from datamodules.shards.tar_index import ShardIndex, account_of
from datamodules.shards.transports import RemoteError, file_name, is_remote
from inpaint_module.files import redact

_OPEN_SHARDS = 64
_OPEN_REMOTE = 8  # until a window says how many: an open shard cannot leave the cache
_PAUSES = (0.1, 1.0, 4.0)  # seconds between reads of a file system that hiccups
_FINAL = (RemoteError, CacheFullError, FileNotFoundError, PermissionError)


class RawSample(NamedTuple):
    """One sample's undecoded fields, and the position in the stream that asked for it.

    `removal` is another sample, whose object's mask goes onto this one's image; most samples have none. `size` is the
    target, (H, W) pixels, of a sample that gets another than the data module's. `fault` says why the fields of a sample
    could not be read, if that is the sample's own fault; then they are not all there. `source` is the number of the
    entry of train_shards that it comes from.
    """

    shard: str
    key: str
    fields: dict[str, bytes]
    position: int = -1
    removal: RawSample | None = None
    size: tuple[int, int] | None = None
    fault: str = ""
    source: int = 0


class OpenFiles:
    """Numbered descriptors for reading; a forked process closes its parent's and opens its own.

    Args:
        limit: how many are open at a time.
        close: ends the use of a descriptor that this process has opened.
    """

    def __init__(self, limit: int, close: Callable[[int], object] = os.close) -> None:
        self.limit = limit
        self._close = close
        self._process = os.getpid()
        self._files: OrderedDict[int, int] = OrderedDict()

    def get(self, number: int, open_file: Callable[[], int]) -> int:
        """The descriptor of a file, opened if it is not open."""
        if self._process != os.getpid():
            self.close()
            self._process = os.getpid()
        if number not in self._files:
            while len(self._files) >= self.limit:
                self.close_oldest()
            self._files[number] = open_file()
        self._files.move_to_end(number)
        return self._files[number]

    def drop(self, number: int) -> None:
        """Close a file, if it is open."""
        if number in self._files:
            self._files.move_to_end(number, last=False)
            self.close_oldest()

    def close_oldest(self) -> bool:
        """Close the file that was used longest ago; False if none is open."""
        if not self._files:
            return False
        _, file = self._files.popitem(last=False)
        # a lock on an inherited descriptor is the parent's too: do not end it here
        (self._close if self._process == os.getpid() else os.close)(file)
        return True

    def close(self) -> None:
        """Close all."""
        while self.close_oldest():
            pass

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()


class ShardSet:
    """Random access to the samples of several shards, numbered 0..n-1 through the shards in their order.

    Holds at most 64 open files, and of remote shards as many as were asked for ahead. `os.pread` shares no file offset.

    Args:
        shards: local or remote.
        cache: through which remote shards are read; None for one in the default folder.
        sources: how many of the shards each source has; None for one source.

    Raises:
        ValueError: if there is no sample, or a remote shard is larger than the cache.
    """

    def __init__(
        self, shards: Sequence[Shard], cache: ShardCache | None = None, sources: Sequence[int] | None = None
    ) -> None:
        self.shards = list(shards)
        self._ends = list(accumulate(sources or [len(self.shards)]))
        self.counts = [shard.count for shard in self.shards]
        self.starts = [0, *accumulate(self.counts)]
        self._begin()
        remote = [shard for shard, is_there in zip(self.shards, self._is_remote, strict=True) if is_there]
        self.cache = ShardCache() if cache is None and remote else cache
        if not len(self):
            raise ValueError(f"expected at least one sample, got none in {self._addresses}")
        if self.cache is not None:
            self.cache.check(remote)

    def _begin(self) -> None:
        self._is_remote = [is_remote(shard.path) for shard in self.shards]
        self._addresses = [
            redact(shard.path) if shard.files is None else os.path.dirname(shard.path) for shard in self.shards
        ]
        self._local = OpenFiles(_OPEN_SHARDS)
        self._remote = OpenFiles(_OPEN_REMOTE, release)
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("shards", "counts", "starts", "cache", "_ends")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def fingerprint(self) -> str:
        """sha256 over every shard's file name, count, size and digest, in order; folders and hosts do not count."""
        rows = [[file_name(s.path), s.count, s.bytes, s.digest] for s in self.shards]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def index(self, number: int) -> ShardIndex:
        """The index of shard `number`; a remote one's costs no download of the shard."""
        if number not in self._indexes:
            shard = self.shards[number]
            here = shard.index is not None or (shard.index_file is not None and Path(shard.index_file).exists())
            fetch = None if here or self.cache is None or not self._is_remote[number] else self.cache.index
            self._indexes[number] = (fetch or load_index)(shard)
            if len(self._indexes) > _OPEN_SHARDS:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(number)
        return self._indexes[number]

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Get the remote ones of these shards, soon to be read, in the background and in this order.

        They take the place of those asked for before; call it once a window, with the shards of one window.
        """
        shards = [self.shards[number] for number in numbers if self._is_remote[number]]
        if self.cache is not None and shards:
            self._remote.limit = len(shards)
            self.cache.prefetch(shards)

    def _open_cached(self, cache: ShardCache, shard: Shard) -> int:
        """Open a remote shard, letting go of others if the cache is full of shards in use."""
        until = time.monotonic() + cache.policy.stall_seconds
        while True:
            try:
                return cache.open(shard)
            except CacheFullError:
                if not self._remote.close_oldest():  # then it is for other processes to let go
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.2)

    def _file(self, number: int) -> int:
        shard = self.shards[number]
        if self.cache is not None and self._is_remote[number]:
            return self._remote.get(number, partial(self._open_cached, self.cache, shard))
        return self._local.get(number, partial(os.open, shard.path, os.O_RDONLY))

    def _from_files(self, number: int, row: int, files: dict[str, tuple[str, int]]) -> RawSample:
        """A sample of a folder of pictures, whose files are what they were when its index was made."""
        index, fields, faults = self.index(number), {}, []
        for name, (path, time_ns) in files.items():
            try:
                with open(path, "rb") as file:
                    state, fields[name] = os.fstat(file.fileno()), file.read()
            except FileNotFoundError:
                faults.append(f"{path}: expected the file that was there at the start, got none")
                continue
            if len(fields[name]) != index.fields[row][name][1] or (time_ns and state.st_mtime_ns != time_ns):
                faults.append(
                    f"{path}: expected the file as it was at the start, got one that has changed; start again"
                )
        return RawSample(self._addresses[number], index.keys[row], fields, fault="; ".join(faults))

    def _fields(self, number: int, row: int) -> RawSample:
        if (files := self.shards[number].files) is not None:
            return self._from_files(number, row, files[row])
        index, file = self.index(number), self._file(number)
        fields = {name: os.pread(file, size, offset) for name, (offset, size) in index.fields[row].items()}
        short = [name for name, (_, size) in index.fields[row].items() if len(fields[name]) != size]
        if short:
            raise OSError(f"sample {index.keys[row]!r}: the file ends inside its fields {short}")
        return RawSample(self._addresses[number], index.keys[row], fields)

    def read(self, sample: int) -> RawSample:
        """The fields of sample number `sample`; a failing read is tried again, on a file opened anew.

        Raises:
            OSError: naming the shard, if it keeps failing, cannot be had, or ends before the sample does.
        """
        number = bisect_right(self.starts, sample) - 1
        for pause in (*_PAUSES, None):
            try:
                found = self._fields(number, sample - self.starts[number])
                return found._replace(source=bisect_right(self._ends, number))
            except _FINAL:
                raise
            except OSError as error:
                self._local.drop(number)
                self._remote.drop(number)
                if pause is None:
                    raise OSError(f"{self._addresses[number]}: {error}") from error
                time.sleep(pause)
        raise AssertionError("the last pause is None")


_LOCAL, _REMOTE = 32, 2  # indexes that are read of a set of more shards


class Contents(NamedTuple):
    """The account of the samples of some shards of a set, `samples` of the whole set."""

    account: Account
    samples: int

    @property
    def whole(self) -> bool:
        """Whether all samples of the set are in the account."""
        return self.account.taken == self.samples


def look_into(shards: ShardSet) -> Contents:
    """The account of a set: of up to 32 shards, evenly among all; of 2 where they are remote."""
    count = len(shards.shards)
    most = min(count, _REMOTE if any(shards._is_remote) else _LOCAL)
    account = Account()
    for number in range(most):
        account.add(account_of(shards.index(number * count // most)))
    return Contents(account, len(shards))
