"""StreamDataModule: an endless stream whose checkpoint is one position; masks for its batches; totals in the log."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, Timer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from inpaint_module.batch import Batch
from inpaint_module.masks.generator import MaskGenerator
from inpaint_module.randomness import Stream, key


class StreamDataModule(LightningDataModule, ABC):
    """Knows where the stream is, by the trainer's optimizer steps, and goes on there after a restart.

    Nothing that prefetches counts: a batch in a worker or inside an accumulation window is not used yet.
    """

    batch_size: int  # samples of one batch on one device

    def __init__(self) -> None:
        super().__init__()
        self._start = 0
        self._start_step: int | None = None  # the trainer's global_step at position _start

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same sample; plain values."""

    def rank_and_world(self) -> tuple[int, int]:
        """Rank and number of ranks as to data: tensor-parallel ranks share theirs."""
        options = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"rank": 0, "num_replicas": 1}
        return options["rank"], options["num_replicas"]

    def global_step(self) -> int:
        """Optimizer steps so far; 0 without a trainer."""
        return self.trainer.global_step if self.trainer else 0

    def position(self) -> int:
        """The first position that no optimizer step has used; batches inside an accumulation window do not count."""
        if self.trainer is None or self._start_step is None:
            return self._start
        steps = self.global_step() - self._start_step
        return self._start + steps * self.trainer.accumulate_grad_batches * self.rank_and_world()[1] * self.batch_size

    def advance(self, samples: int) -> None:
        """Count samples, of all ranks, that a loop without a trainer has used; its checkpoint goes on after them."""
        self._start += samples

    def begin(self) -> None:
        """Count optimizer steps from here on, unless they are counted already."""
        if self._start_step is None:
            self._start_step = self.global_step()

    def next_position(self) -> int:
        """Where the training loader starts anew: `trainer.overfit_batches` repeats the first batches."""
        repeat = self.trainer and self.trainer.overfit_batches  # type: ignore[attr-defined]
        return self._start if repeat else self.position()

    def _settle(self) -> None:
        """Make the position independent of the trainer, which is about to go."""
        self._start, self._start_step = self.position(), None

    def teardown(self, stage: str) -> None:
        """Keep the position: another fit goes on from there."""
        if stage == "fit":
            self._settle()

    def on_exception(self, exception: BaseException) -> None:
        """As after a fit."""
        self._settle()

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream and what it refers to."""
        return {"position": self.position(), **self.plan()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a checkpoint's position; evaluation ignores it.

        Raises:
            ValueError: if the checkpoint's seed, window, dataset or order is not this run's.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        check_plan(self.plan(), state_dict)
        self._start, self._start_step = state_dict["position"], None


def check_plan(here: dict[str, Any], checkpoint: dict[str, Any]) -> None:
    """Refuse a checkpoint whose position would mean other samples here; of other masks, `masks_sha256`, warn."""
    if (there := checkpoint.get("masks_sha256")) != (painted := here.get("masks_sha256")):
        known = "masks that it does not name" if there is None else f"masks {there[:16]}..."
        rank_zero_warn(
            f"data mask_generator: the checkpoint was trained with {known}, and this run paints "
            f"{str(painted)[:16]}...; it goes on with these, not to the bit. The configuration was changed, or the "
            "version of this package: CHANGELOG.md says which presets paint other masks"
        )
    for name in [*here, *sorted(checkpoint.keys() - here.keys())]:
        if name not in ("position", "masks_sha256") and (there := checkpoint.get(name)) != (value := here.get(name)):
            others = "data.train_shards holds other samples than then, and " if name == "dataset_fingerprint" else ""
            raise ValueError(
                f"data {name}: expected {there!r} as in the checkpoint, got {value!r}: {others}the stream cannot go on "
                "where it was; restore it, or give this run a folder of its own"
            )


def check_trainer(trainer: Trainer) -> None:
    """Refuse a training that would never end, or whose steps do not say how many samples they used.

    Raises:
        ValueError: naming the trainer's argument.
    """
    _check_end(trainer)
    _check_steps(trainer)


def check_batch(batch_size: int, samples: int, size: tuple[int, int], memory: int) -> None:
    """Refuse a batch whose images alone do not fit, and say when it is larger than the data set.

    Args:
        batch_size: samples of one batch on one device.
        samples: of the training set.
        size: of an image, pixels.
        memory: of the device, bytes; see `memory_of`.

    Raises:
        ValueError: naming the batch size, and what a batch takes.
    """
    needed = batch_size * 3 * size[0] * size[1] * (1 + 2 * 4)  # bytes, and as float32 both whole and masked
    if needed > memory:
        raise ValueError(
            f"data.batch_size: expected a batch that fits into the {memory / 1e9:.1f} GB of the device's memory, got "
            f"{batch_size}, whose images of {size[0]} x {size[1]} pixels alone take {needed / 1e9:.1f} GB, before any "
            "model: take a smaller one (trainer.accumulate_grad_batches keeps the samples of a step; "
            "model.encoder.init_args.max_batch bounds what the VAE takes at once)"
        )
    if batch_size > samples:
        rank_zero_info(
            f"data.batch_size: {batch_size} samples are more than the {samples} of data.train_shards: each comes "
            f"{batch_size / samples:.3g} times in every batch, with other crops and masks"
        )


def memory_of(device: torch.device) -> int:
    """All the memory that a device has, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _has_callback(trainer: Trainer, *kinds: type[Callback]) -> bool:
    return any(isinstance(callback, kinds) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def _check_end(trainer: Trainer) -> None:
    """An endless stream has no last batch, so that an epoch ends only where `limit_train_batches` says so."""
    ends = trainer.max_steps != -1 or (isinstance(trainer.limit_train_batches, int) and trainer.max_epochs != -1)
    if not ends and not _has_callback(trainer, EarlyStopping, Timer):
        raise ValueError(
            f"trainer.max_steps: expected a number of optimizer steps, got {trainer.max_steps} with max_epochs "
            f"{trainer.max_epochs} and limit_train_batches {trainer.limit_train_batches}: the stream is endless, and "
            "the training would be"
        )


def _check_steps(trainer: Trainer) -> None:
    """An epoch that ends inside an accumulation window steps early, and positions could not be counted."""
    limit, window = trainer.limit_train_batches, trainer.accumulate_grad_batches
    if isinstance(limit, int) and limit % window:
        raise ValueError(
            f"trainer.limit_train_batches: expected a multiple of accumulate_grad_batches ({window}), got {limit}"
        )
    if _has_callback(trainer, GradientAccumulationScheduler):
        raise ValueError(
            "trainer.callbacks: expected no GradientAccumulationScheduler, got one: positions in the stream are "
            "counted in optimizer steps of equally many batches; use trainer.accumulate_grad_batches"
        )
    if len(trainer.optimizers) > 1:
        raise ValueError(
            f"model.configure_optimizers: expected one optimizer, got {len(trainer.optimizers)}: each of their steps "
            "would count as one of the stream"
        )


_NOTED = {name: name for name in ("bad", "substituted", "animated", "upscaled")} | {"bad_profile": "bad_profiles"}
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


def add_masks(batch: Batch, mask_generator: MaskGenerator, seed: int, step: int | None = None) -> Batch:
    """Give every sample of a batch a mask, on the device of its positions; a mask from the shard wins.

    Args:
        batch: of `collate`.
        mask_generator: keys int64 (B,) -> bool (B, 1, H, W).
        seed: seeds the masks.
        step: of a curriculum, in optimizer steps; None for the one that it is at.

    Returns:
        The batch with "mask" bool (B, 1, H, W), without "has_mask".
    """
    has_mask = batch.get("has_mask")
    if "mask" in batch and has_mask is None:
        return batch
    height, width = batch["image"].shape[-2:]
    keys = key(seed, batch["position"], Stream.MASK)
    if step is not None:
        mask_generator.set_step(step)
    mask = mask_generator(keys, height, width)
    if has_mask is not None:
        mask = torch.where(has_mask[:, None, None, None], batch["mask"], mask)
    masked: Batch = {**batch, "mask": mask}
    masked.pop("has_mask", None)
    return masked
