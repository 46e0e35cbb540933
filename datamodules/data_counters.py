"""DataCounters: running totals of what the data brought, in the log."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

_NOTED = {
    "bad": "bad",
    "substituted": "substituted",
    "animated": "animated",
    "upscaled": "upscaled",
    "bad_profile": "bad_profiles",
}
_NAMES = ("samples", *_NOTED.values(), "other_notes", "empty_masks", "full_masks")
_CHECKPOINT = "data_counters"


def count_masks(mask: Tensor) -> Tensor:
    """How many of bool (B, 1, H, W) are empty and how many full; int64 (2,) on the same device."""
    flat = mask.flatten(1)
    return torch.stack([(~flat.any(dim=1)).sum(), flat.all(dim=1).sum()])


class DataCounters(Callback):
    """Logs running totals over all ranks and restarts, every `log_every_n_steps` optimizer steps, as `data/...`.

    `samples` trained on; `bad` ones met, `substituted`; `animated` images (their first frame was taken), `upscaled`
    ones, those of `bad_profiles` (colour profiles that cannot be used); `other_notes` of a decoder; `empty_masks` and
    `full_masks`, painted or not.
    Masks are counted on their device, which is not waited for until the totals are logged or saved.
    """

    def __init__(self) -> None:
        self._before = dict.fromkeys(_NAMES, 0)  # of the checkpoint
        self._here = dict.fromkeys(_NAMES[:-2], 0)
        self._masks: Tensor | None = None
        self._logged_step = 0

    def totals(self, trainer: Trainer) -> dict[str, int]:
        """All counts so far; every rank must ask at the same time."""
        device = trainer.strategy.root_device
        masks = torch.zeros(2, dtype=torch.int64) if self._masks is None else self._masks
        here = torch.cat([torch.tensor(list(self._here.values()), device=device), masks.to(device)])
        summed = trainer.strategy.reduce(here, reduce_op="sum")
        assert isinstance(summed, Tensor)
        return {name: self._before[name] + count for name, count in zip(_NAMES, summed.tolist(), strict=True)}

    def _count(self, batch: dict[str, Any]) -> None:
        self._here["samples"] += len(batch["__key__"])
        for kind, texts in batch.get("notes", {}).items():
            self._here[_NOTED.get(kind, "other_notes")] += len(texts)
        if "mask" in batch:
            counts = count_masks(batch["mask"])
            self._masks = counts if self._masks is None else self._masks + counts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the first totals after a whole interval."""
        self._logged_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, and log where it is time."""
        self._count(batch)
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if interval and step != self._logged_step and step % interval == 0:
            self._logged_step = step
            totals: dict[str, float] = {f"data/{name}": count for name, count in self.totals(trainer).items()}
            for logger in trainer.loggers:
                logger.log_metrics(totals, step=step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the totals, those of all ranks."""
        checkpoint[_CHECKPOINT] = self.totals(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from the checkpoint's totals, if it has some."""
        self._before |= checkpoint.get(_CHECKPOINT, {})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was not as it should be."""
        totals = self.totals(trainer)
        found = [f"{count} {name.replace('_', ' ')}" for name, count in totals.items() if count and name != "samples"]
        if found:
            rank_zero_info(f"\ndata: of {totals['samples']} samples: {', '.join(found)}")
