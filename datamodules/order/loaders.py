"""Samples to batches: webdataset's pipeline and loader over the stream; masks for them, painted on the device."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import webdataset as wds

from datamodules.order.failures import CrashLog, InflightMarkers, Quarantine, WatchedDecoder
from datamodules.order.sample_stream import BadShareLimit, Decoder, SampleStream, SubstitutingDecoder
from datamodules.shards import ShardCache
from inpaint_module.batch import Batch
from inpaint_module.parsing import check_at_least, check_share


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Samples -> one batch.

    `has_mask` is there if some samples have own masks and others do not, `target` if some samples have one (those of
    the others are their images), and then `has_target` if not all have; `reference` and `has_reference` alike; `notes`
    if something was noted of a sample ("bad", "substituted" and what else the decoder notes).
    """
    batch: Batch = {
        "image": torch.stack([sample["image"] for sample in samples]),
        "position": torch.tensor([sample["position"] for sample in samples]),
        "caption": [sample["caption"] for sample in samples],
        "__key__": [sample["__key__"] for sample in samples],
    }
    some: Any = batch
    for name in ("label", "loss_weight", "original_size", "crop"):
        if name in samples[0]:
            some[name] = torch.tensor([sample[name] for sample in samples])
    if "latents" in samples[0]:
        batch["latents"] = torch.stack([sample["latents"] for sample in samples])
    if "original_size" in samples[0]:
        batch["target_size"] = torch.tensor([sample["image"].shape[-2:] for sample in samples])
    for name in ("target", "reference"):
        if any(name in sample for sample in samples):
            some[name] = torch.stack([sample.get(name, sample["image"]) for sample in samples])
            has_one = torch.tensor([sample.get(f"has_{name}", name in sample) for sample in samples])
            if not has_one.all():
                some[f"has_{name}"] = has_one
    has_mask = torch.tensor(["mask" in sample for sample in samples])
    if has_mask.any():
        empty = torch.zeros(1, *batch["image"].shape[-2:], dtype=torch.bool)
        batch["mask"] = torch.stack([sample.get("mask", empty) for sample in samples])
        if not has_mask.all():
            batch["has_mask"] = has_mask
    if notes := _notes(samples):
        batch["notes"] = notes
    return batch


def _notes(samples: list[dict[str, Any]]) -> dict[str, list[str]]:
    """What was noted of all samples: kind -> texts."""
    notes: dict[str, list[str]] = {}
    for kind, text in (note for sample in samples for note in sample.get("notes", ())):
        notes.setdefault(kind, []).append(text)
    return notes


@dataclass(frozen=True)
class LoadingOptions:
    """What happens to samples that cannot be used and to a source that stalls; where remote shards are kept.

    Args:
        max_bad_share: Training samples that cannot be used are replaced by others of their window and written to
            quarantine.jsonl in the run folder, up to this share (0..1); above it the run ends. 0 ends it at the first.
            Evaluation refuses every one.
        stall_timeout: Seconds without a batch from the workers after which the run ends; 0 waits for ever.
        cache_dir: Where remote shards are kept; null for INPAINT_CACHE or ~/.cache/inpaint_module/shards.
        cache_bytes: Size of that cache; the longest unused shards go first.

    Raises:
        ValueError: naming the argument, if one is out of range.
    """

    max_bad_share: float = 0.01
    stall_timeout: float = 0.0
    cache_dir: str | None = None
    cache_bytes: int = 50_000_000_000

    def __post_init__(self) -> None:
        check_share("data.loading", max_bad_share=self.max_bad_share)
        check_at_least(0, "data.loading", stall_timeout=self.stall_timeout)
        check_at_least(1, "data.loading", cache_bytes=self.cache_bytes)

    def cache(self) -> ShardCache:
        """Of remote shards."""
        return ShardCache(self.cache_dir, max_bytes=self.cache_bytes)


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
            f"data.loading.stall_timeout: expected a batch within {self._stall_timeout:g} s, got none: "
            f"{doing or 'no worker is decoding: they read, or wait'}"
        )


def _watched(decoder: Decoder, markers: InflightMarkers, crashes: CrashLog, workers: int) -> Decoder:
    """The decoder, watched where a worker may die or has died."""
    return WatchedDecoder(decoder, markers, crashes.refused) if workers or crashes.refused else decoder


class StreamLoader(BatchLoader):
    """A loader of an endless stream, which asks `position` for its first position whenever it starts anew.

    Bad samples are substituted and written to `quarantine.jsonl`, and so are samples that have killed workers in an
    earlier start with the same folder (`crashes.jsonl`). A batch has "notes" (kind -> texts) if there is something to
    note: kinds "bad", "substituted" and those of the decoder.

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
            _watched(decoder, markers, crashes, num_workers),
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
        watched = _watched(decoder, markers, crashes, num_workers)
        super().__init__(stream, watched, num_workers=num_workers, persistent_workers=num_workers > 0, **watch)
        self._steps = steps

    def __len__(self) -> int:
        return self._steps
