"""Loaders: webdataset's pipeline and loader over the stream, endless or of known length."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import webdataset as wds

from datamodules.batches import collate
from datamodules.faults.bad_share import BadShareLimit
from datamodules.faults.crashes import CrashLog, WatchedDecoder
from datamodules.faults.inflight import InflightMarkers
from datamodules.faults.quarantine import Quarantine
from datamodules.faults.substitution import Decoder, SubstitutingDecoder
from datamodules.stream.sample_stream import SampleStream

_ATTEMPTS = 16  # substitutes of one bad sample: half of the samples may be bad


class BatchLoader(wds.WebLoader):
    """A WebLoader of the stream's samples, decoded and collated; a worker computes on one thread as it is.

    A worker that dies ends the iteration: the sample that it was decoding is in the error and in `crashes.jsonl`.

    Args:
        stream: where the raw samples come from.
        decoder: raw sample -> sample.
        markers: where workers note what they decode.
        crashes: where a death is written down.
        num_workers: processes that decode; 0 decodes in this one.
        stall_timeout: seconds without a batch from the workers after which to raise; 0 waits for ever.
        options: further ones of torch's DataLoader.
    """

    def __init__(
        self,
        stream: SampleStream,
        decoder: Decoder,
        *,
        markers: InflightMarkers,
        crashes: CrashLog,
        num_workers: int,
        stall_timeout: float = 0.0,
        **options: Any,
    ) -> None:
        batches = wds.batched(stream.batch_size, collation_fn=collate, partial=False)
        super().__init__(
            wds.DataPipeline(stream, wds.map(decoder), batches),
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the loader's own draw must not move the global one
            timeout=stall_timeout if num_workers else 0.0,
            **options,
        )
        self._markers = markers
        self._crashes = crashes
        self._stall_timeout = stall_timeout

    def explain(self, error: BaseException) -> None:
        """Add to an error what workers that died were decoding, and write it to `crashes.jsonl`.

        torch raises the death of a worker from a signal handler, that is, from whatever line the process is at, so
        that whoever meets such an error calls this.
        """
        self._crashes.explain(error, self._markers)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises RuntimeError for a worker that died, TimeoutError for a stall, and what a worker raised."""
        self._markers.reset()
        others = set(multiprocessing.active_children())
        batches = iter(self.pipeline[0])  # the DataLoader, which starts its workers here
        self._markers.watch([child for child in multiprocessing.active_children() if child not in others])
        return self._explained(batches)

    def _explained(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        try:
            yield from batches
        except RuntimeError as error:
            if str(error).startswith("DataLoader timed out"):
                raise self._stall() from error
            self.explain(error)
            raise

    def _stall(self) -> TimeoutError:
        """An error that says what the workers are at."""
        doing = "; ".join(str(each).replace("was decoding", "decodes") for each in self._markers.in_use())
        return TimeoutError(
            f"data.stall_timeout: expected a batch within {self._stall_timeout:g} s, got none: "
            f"{doing or 'no worker is decoding: they read, or wait'}"
        )


class StreamLoader(BatchLoader):
    """A loader of an endless stream, which asks `position` for its first position whenever it starts anew.

    Bad samples are substituted and written to `quarantine.jsonl`, and so are samples that have killed workers in an
    earlier start with the same folder (`crashes.jsonl`). A batch has "notes" (kind -> texts) if there is something to
    tell: kinds "bad", "substituted" and those of the decoder.

    Args:
        stream: where the raw samples come from.
        decoder: raw sample -> sample.
        num_workers: processes that decode; 0 decodes in this one, which a sample may then kill.
        position: the first position.
        seed: seeds the choice of substitutes.
        folder: of the two files; None writes none.
        max_bad_share: ends the run above this share (0..1) of bad samples; 0 ends it at the first.
        stall_timeout: seconds without a batch from the workers after which to raise; 0 waits for ever.
    """

    def __init__(
        self,
        stream: SampleStream,
        decoder: Decoder,
        *,
        num_workers: int,
        position: Callable[[], int],
        seed: int = 0,
        folder: Path | None = None,
        max_bad_share: float = 0.01,
        stall_timeout: float = 0.0,
    ) -> None:
        quarantine = Quarantine(folder, rank=stream.rank)
        markers, crashes = InflightMarkers(num_workers), CrashLog(folder, rank=stream.rank)
        tolerant = SubstitutingDecoder(
            WatchedDecoder(decoder, markers, crashes.killers),
            shards=stream.shards,
            order=stream.order,
            seed=seed,
            attempts=_ATTEMPTS if max_bad_share > 0 else 0,
            quarantine=quarantine,
        )
        watch: dict[str, Any] = {"markers": markers, "crashes": crashes, "stall_timeout": stall_timeout}
        super().__init__(stream, tolerant, num_workers=num_workers, **watch)
        self._stream = stream
        self._position = position
        self._limit = BadShareLimit(max_bad_share, path=quarantine.path)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises ValueError for too many bad samples, and as `BatchLoader` does."""
        self._stream.start = self._position()
        return self._limited(super().__iter__())

    def _limited(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            self._limit(batch.get("notes", {}).get("bad", ()), len(batch["__key__"]))
            yield batch


class EvaluationLoader(BatchLoader):
    """A loader of known length, `steps` batches of this rank, whose workers stay.

    An evaluation is of all its samples: a bad one ends it, named, and so does one that has killed a worker before.
    """

    def __init__(
        self,
        stream: SampleStream,
        decoder: Decoder,
        *,
        steps: int,
        num_workers: int,
        folder: Path | None = None,
        stall_timeout: float = 0.0,
    ) -> None:
        markers, crashes = InflightMarkers(num_workers), CrashLog(folder, rank=stream.rank)
        watch: dict[str, Any] = {"markers": markers, "crashes": crashes, "stall_timeout": stall_timeout}
        watched = WatchedDecoder(decoder, markers, crashes.killers)
        super().__init__(stream, watched, num_workers=num_workers, persistent_workers=num_workers > 0, **watch)
        self._steps = steps

    def __len__(self) -> int:
        return self._steps
