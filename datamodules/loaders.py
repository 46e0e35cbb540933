"""Loaders: webdataset's pipeline and loader over the stream, endless or of known length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import webdataset as wds

from datamodules.batches import collate
from datamodules.samples import SampleDecoder
from datamodules.stream import SampleStream


class BatchLoader(wds.WebLoader):
    """A WebLoader of the stream's samples, decoded and collated; a worker computes on one thread as it is.

    Args:
        stream: where the raw samples come from.
        decoder: raw sample -> sample.
        num_workers: processes that decode; 0 decodes in this one.
        options: further ones of torch's DataLoader.
    """

    def __init__(self, stream: SampleStream, decoder: SampleDecoder, *, num_workers: int, **options: Any) -> None:
        batches = wds.batched(stream.batch_size, collation_fn=collate, partial=False)
        super().__init__(
            wds.DataPipeline(stream, wds.map(decoder), batches),
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the loader's own draw must not move the global one
            **options,
        )


class StreamLoader(BatchLoader):
    """A loader of an endless stream, which asks `position` for its first position whenever it starts anew."""

    def __init__(self, stream: SampleStream, *args: Any, position: Callable[[], int], **options: Any) -> None:
        super().__init__(stream, *args, **options)
        self._stream = stream
        self._position = position

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._stream.start = self._position()
        return super().__iter__()


class EvaluationLoader(BatchLoader):
    """A loader of known length, `steps` batches of this rank, whose workers stay."""

    def __init__(self, *args: Any, steps: int, num_workers: int, **options: Any) -> None:
        super().__init__(*args, num_workers=num_workers, persistent_workers=num_workers > 0, **options)
        self._steps = steps

    def __len__(self) -> int:
        return self._steps
