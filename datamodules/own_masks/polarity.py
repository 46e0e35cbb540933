"""Polarity: masks from the data that are mostly white say, most likely, what to keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from datamodules.own_masks.mask_sources import FileMask
from datamodules.own_masks.own_masks import OwnMasks
from datamodules.shards.contents import Contents, look_into
from datamodules.shards.shard_set import ShardSet

EMPTY = "with an empty mask: nothing in it is white"
FULL = "with a full mask: all of it is white"
INVERTED = "with a mask that looks inverted: white is what is inpainted"
_ENOUGH = 64
_MOSTLY = 0.9
_MUCH, _EDGE = 0.6, 0.8  # shares of a mask and of its border


def suspicious_polarity(coverages: Sequence[float]) -> bool:
    """Whether so large a share (0..1) of each mask is masked, on average, that 1 seems to mean keep."""
    return sum(coverages) > _MOSTLY * len(coverages)


def why_look(mask: np.ndarray) -> str | None:
    """What is odd about one mask, bool (H, W), as a kind of an account; None if nothing is."""
    edges = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if not mask.any():
        return EMPTY
    if mask.all():
        return FULL
    return INVERTED if mask.mean() > _MOSTLY or (mask.mean() > _MUCH and edges.mean() > _EDGE) else None


def own_masks_told(contents: Contents, probability: float) -> str | None:
    """What to tell of masks in the shards, which a mask generator is not asked for; None if there are none.

    Args:
        contents: of the training shards.
        probability: how often (0..1) a mask of a sample's own is used.
    """
    masks, looked = contents.account.found["masks"], contents.account.taken
    if not masks or not probability:
        return None
    of = f"{masks} of {looked}" if contents.whole else f"{masks} of {looked} looked at, of {contents.samples} in all"
    return (
        f"data: {masks / looked:.0%} of the training samples ({of}) have a mask of their own, which is used in place "
        f"of data.mask_generator's at {probability:.0%} of their visits (data.own_mask_probability: {probability:g}); "
        "0 there leaves them out"
    )


class PolarityWatch:
    """Looks at the first 64 masks from the data and warns once; to be called where batches arrive, on the CPU."""

    def __init__(self) -> None:
        self.coverages: list[float] = []
        self._begun = False

    def begin(self, shards: ShardSet, masks: OwnMasks) -> None:
        """Say once, as training begins, which share of its samples brings a mask file."""
        if not self._begun and any(isinstance(source, FileMask) for source in masks.sources):
            from lightning.pytorch.utilities import rank_zero_info  # as below

            if told := own_masks_told(look_into(shards), masks.probability):
                rank_zero_info(told)
        self._begun = True

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
