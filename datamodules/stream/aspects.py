"""Aspects: the width to height of any sample's image, from the index of its shard."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.shards.shard_set import ShardSet
from inpaint_module.redaction import redact


class ShardAspects:
    """int64 sample numbers (B,) -> float32 (B,): width / height of the upright image.

    An image whose header cannot be read counts as square; the decoder will refuse it.

    Args:
        shards: whose indexes are read, each when one of its samples is asked for.
    """

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        self._starts = torch.tensor(shards.starts)

    def _sizes(self, number: int) -> list[tuple[int, int]]:
        """Width and height of each image of one shard."""
        if (sizes := self.shards.index(number).sizes) is None:
            raise ValueError(
                f"data.bucket_step: {redact(self.shards.shards[number].path)}: expected image sizes in its index, got "
                "none; write it with inpaint shards index"
            )
        return sizes

    def __call__(self, samples: Tensor) -> Tensor:
        """See the class.

        Raises:
            ValueError: naming the shard, if its index has no image sizes.
        """
        shards = torch.searchsorted(self._starts, samples, right=True) - 1
        aspects = torch.empty(len(samples))
        for number in shards.unique().tolist():
            sizes, here = self._sizes(number), shards == number
            rows = (samples[here] - self._starts[number]).tolist()
            aspects[here] = torch.tensor([w / h if w > 0 and h > 0 else 1.0 for w, h in (sizes[row] for row in rows)])
        return aspects
