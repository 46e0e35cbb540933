"""What the data module refuses: arguments out of range, checkpoints of another stream, trainers that do not fit."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, GradientAccumulationScheduler, Timer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn


def check_at_least(low: int, **values: float) -> None:
    """Refuse numbers under `low`, naming the argument."""
    for name, value in values.items():
        if value < low:
            raise ValueError(f"data.{name}: expected at least {low}, got {value}")


def check_share(**values: float) -> None:
    """Refuse numbers outside 0..1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"data.{name}: expected 0 to 1, got {value}")


def check_image_size(value: int | tuple[int, ...]) -> tuple[int, int]:
    """(H, W) of one number for squares, or of two; anything but positive numbers is refused."""
    size = (value, value) if isinstance(value, int) else tuple(value)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"data.image_size: expected positive pixels, one number or [height, width], got {size}")
    return size[0], size[1]


def check_colour(background: tuple[int, ...]) -> None:
    """Refuse anything but three numbers 0..255."""
    if len(background) != 3 or not all(0 <= value <= 255 for value in background):
        raise ValueError(f"data.background: expected three numbers 0 to 255, got {background}")


def check_masks(**values: Any) -> None:
    """Refuse settings of masks where there are none."""
    for name, value in values.items():
        if value:
            raise ValueError(
                f"data.{name}: expected none without masks, got {value}: data.mask_generator is null, so that batches "
                "have no masks; set a generator, such as inpaint_module.masks.preset"
            )


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
    """Refuse a training that would never end, or whose steps do not tell how many samples they used.

    Raises:
        ValueError: naming the trainer's argument.
    """
    _check_end(trainer)
    _check_steps(trainer)
    _check_accumulation(trainer)


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


def _check_accumulation(trainer: Trainer) -> None:
    """An epoch that ends inside an accumulation window steps early, and positions could not be counted."""
    limit, window = trainer.limit_train_batches, trainer.accumulate_grad_batches
    if isinstance(limit, int) and limit % window:
        raise ValueError(
            f"trainer.limit_train_batches: expected a multiple of accumulate_grad_batches ({window}), got {limit}"
        )
