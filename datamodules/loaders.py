"""Loaders: webdataset's pipeline and loader over the stream, endless or of known length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import webdataset as wds

from datamodules.batches import collate
from datamodules.faults.bad_share import BadShareLimit
from datamodules.faults.crashes import CrashLog
from datamodules.faults.inflight import InflightMarkers
from datamodules.faults.quarantine import Quarantine
from datamodules.faults.recovery import POLL_SECONDS, WorkerRecovery, start_workers
from datamodules.faults.substitution import Decoder, SubstitutingDecoder
from datamodules.stream.sample_stream import SampleStream

_ATTEMPTS = 16  # substitutes of one bad sample: half of the samples may be bad


class BatchLoader(wds.WebLoader):
    """A WebLoader of the stream's samples, decoded and collated; a worker computes on one thread as it is.

    Args:
        stream: where the raw samples come from.
        decoder: raw sample -> sample.
        num_workers: processes that decode; 0 decodes in this one.
        timeout: seconds to wait for a batch of the workers; 0 waits for ever.
        options: further ones of torch's DataLoader.
    """

    def __init__(
        self, stream: SampleStream, decoder: Decoder, *, num_workers: int, timeout: float = 0.0, **options: Any
    ) -> None:
        batches = wds.batched(stream.batch_size, collation_fn=collate, partial=False)
        super().__init__(
            wds.DataPipeline(stream, wds.map(decoder), batches),
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the loader's own draw must not move the global one
            timeout=timeout if num_workers else 0.0,
            **options,
        )


class StreamLoader(BatchLoader):
    """A loader of an endless stream, which asks `position` for its first position whenever it starts anew.

    Bad samples are substituted and written to `quarantine.jsonl`. Workers that a sample kills are started anew, which
    changes no batch, and a sample that has killed two counts as bad, here and in later runs with the same folder
    (`crashes.jsonl`). A batch has "notes" (kind -> texts) if there is something to tell: kinds "bad", "substituted",
    "crash" and those of the decoder.

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
        self._markers = InflightMarkers(num_workers)
        self._crashes = CrashLog(folder, rank=stream.rank)
        tolerant = SubstitutingDecoder(
            decoder,
            shards=stream.shards,
            order=stream.order,
            seed=seed,
            attempts=_ATTEMPTS if max_bad_share > 0 else 0,
            quarantine=quarantine,
            markers=self._markers,
            killers=self._crashes.killers,
        )
        super().__init__(stream, tolerant, num_workers=num_workers, timeout=POLL_SECONDS)
        self._stream = stream
        self._position = position
        self._num_workers = num_workers
        self._stall_timeout = stall_timeout
        self._limit = BadShareLimit(max_bad_share, path=quarantine.path)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Raises ValueError for too many bad samples, RuntimeError for deaths that no sample explains."""
        first = self._position()
        if not self._num_workers:
            self._stream.start = first
            return self._watched(super().__iter__())

        def start(delivered: int) -> Iterator[dict[str, Any]]:
            self._stream.start = first + delivered * self._stream.world * self._stream.batch_size
            return start_workers(self.pipeline[0])

        watch: dict[str, Any] = {
            "markers": self._markers,
            "crashes": self._crashes,
            "stall_timeout": self._stall_timeout,
        }
        return self._watched(iter(WorkerRecovery(start, **watch)))

    def _watched(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            self._limit(batch.get("notes", {}).get("bad", ()), len(batch["__key__"]))
            yield batch


class EvaluationLoader(BatchLoader):
    """A loader of known length, `steps` batches of this rank, whose workers stay.

    An evaluation is of all its samples: a bad one ends it, named.
    """

    def __init__(self, *args: Any, steps: int, num_workers: int, stall_timeout: float = 0.0, **options: Any) -> None:
        options |= {"timeout": stall_timeout, "persistent_workers": num_workers > 0}
        super().__init__(*args, num_workers=num_workers, **options)
        self._steps = steps

    def __len__(self) -> int:
        return self._steps
