"""For tests on a GPU: batches there, and an error for whatever waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def on_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its tensors moved."""
    return {name: value.to("cuda") if isinstance(value, Tensor) else value for name, value in batch.items()}


@contextmanager
def never_waiting() -> Iterator[None]:
    """Inside, the host must not wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
