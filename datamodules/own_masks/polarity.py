"""Polarity: masks from the data that are mostly white say, most likely, what to keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_ENOUGH = 64
_MOSTLY = 0.9
_MUCH, _EDGE = 0.6, 0.8  # shares of a mask and of its border


def suspicious_polarity(coverages: Sequence[float]) -> bool:
    """Whether so large a share (0..1) of each mask is masked, on average, that 1 seems to mean keep."""
    return sum(coverages) > _MOSTLY * len(coverages)


def looks_inverted(mask: np.ndarray) -> bool:
    """Whether one mask, bool (H, W), is mostly masked, along its border too: it may mark what to keep."""
    edges = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return bool(mask.mean() > _MOSTLY or (mask.mean() > _MUCH and edges.mean() > _EDGE))


class PolarityWatch:
    """Looks at the first 64 masks from the data and warns once; to be called where batches arrive, on the CPU."""

    def __init__(self) -> None:
        self.coverages: list[float] = []

    def __call__(self, batch: dict[str, Any]) -> None:
        """Note the masks of a batch of `collate`, in which `has_mask` tells the painted from the own ones."""
        if "mask" not in batch or len(self.coverages) >= _ENOUGH:
            return
        own = batch["mask"][batch["has_mask"]] if "has_mask" in batch else batch["mask"]
        self.coverages += own.float().mean(dim=(1, 2, 3)).tolist()
        if len(self.coverages) >= _ENOUGH and suspicious_polarity(self.coverages):
            from lightning.pytorch.utilities import rank_zero_warn  # seconds, which make_shards need not wait

            share = sum(self.coverages) / len(self.coverages)
            rank_zero_warn(
                f"the first {len(self.coverages)} masks from the shards are {share:.0%} white, up to sample "
                f"{batch['__key__'][-1]!r}; white is what is inpainted. If yours mark what to keep, set "
                "`inverted: true` of the source in data.mask_sources"
            )
