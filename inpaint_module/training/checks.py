"""What must be alike before a run goes on: checkpoint and frozen models on all ranks, the model and its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from inpaint_module.batch import DescribedData
from inpaint_module.training.checkpoints import VerifiedCheckpointIO, local_path, read_seal, verify_checkpoint

LIGHTNINGS_WORDS = ("best", "last", "hpc")  # which file it takes for them is not known before


class Resumed(NamedTuple):
    """What one rank is about to load; all but the path must be equal on all ranks."""

    path: str  # of its own machine
    seal: str  # step and sha256; empty without a checkpoint
    error: str  # why it cannot be loaded

    def __str__(self) -> str:
        return self.error or f"{self.path} {self.seal}".strip() or "no checkpoint"


def check_same_checkpoint(trainer: Trainer, path: str | Path | None) -> None:
    """Compare what the ranks are about to load (None: nothing); call it on all of them.

    Strategies that read the file by themselves, as FSDP2's does, never ask the CheckpointIO: for them the seal is
    verified here, on every rank.

    Raises:
        ValueError: on all ranks, naming them and their files, if one differs or cannot be loaded.
    """
    if not isinstance(trainer.strategy.checkpoint_io, VerifiedCheckpointIO):
        return
    by_itself = type(trainer.strategy).load_checkpoint is not Strategy.load_checkpoint
    check_equal(gathered(look_at(path, verify=by_itself)))


def look_at(path: str | Path | None, *, verify: bool) -> Resumed:
    """What would be loaded; `verify` reads all of it."""
    if path is None or path in LIGHTNINGS_WORDS:
        return Resumed("", str(path or ""), "")
    try:
        file = local_path(path)
        seal = verify_checkpoint(file) if verify else read_seal(file)
    except (ValueError, OSError) as error:
        return Resumed(str(path), "", str(error))
    return Resumed(str(path), f"(step {seal.step}, sha256 {seal.sha256[:16]})", "")


def gathered(own: Resumed) -> list[Resumed]:
    """That of every rank."""
    if not dist.is_available() or not dist.is_initialized():
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def check_equal(ranks: list[Resumed]) -> None:
    """Refuse ranks that differ.

    Raises:
        ValueError: naming the ranks and their files.
    """
    if len(ranks) == 1 and ranks[0].error:
        raise ValueError(f"resume: {ranks[0].error}")
    if any(rank.error or rank.seal != ranks[0].seal for rank in ranks):
        what = "; ".join(f"rank {number}: {rank}" for number, rank in enumerate(ranks))
        raise ValueError(
            f"resume: expected the same whole checkpoint on every rank, got {what}. Put the checkpoint folder where "
            "all hosts see it, or copy one file to all of them"
        )


def check_ranks(name: str, digests: Sequence[Sequence[int]]) -> None:
    """Refuse ranks with different frozen models: no strategy broadcasts one that is outside the module tree.

    Args:
        name: what is frozen.
        digests: its fingerprint on each rank, as bytes.

    Raises:
        ValueError: they differ, naming the ranks.
    """
    others = [rank for rank, other in enumerate(digests) if list(other) != list(digests[0])]
    if others:
        raise ValueError(
            f"the {name}'s weights on rank {', '.join(map(str, others))} are not those on rank 0; load the same {name} "
            "in the same dtype on every rank"
        )


def check_saved(name: str, saved: str, here: str) -> None:
    """Refuse a checkpoint that was trained with another frozen model.

    Args:
        name: what is frozen.
        saved: the checkpoint's fingerprint, in hex.
        here: that of this run.

    Raises:
        ValueError: they differ.
    """
    if saved != here:
        raise ValueError(
            f"this checkpoint was trained with a {name} whose weights have sha256 {saved[:16]}..., but this run's has "
            f"{here[:16]}...; load the same {name} in the same dtype"
        )


def check_weights(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model.

    Args:
        saved: the checkpoint's state dict.
        here: that of this run's module.

    Raises:
        ValueError: naming the first weights that differ in name or shape.
    """
    old, new = ({n: tuple(v.shape) for n, v in each.items() if isinstance(v, Tensor)} for each in (saved, here))
    others = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name) and "_extra_state" not in name]
    if others:
        told = "; ".join(f"{name}: {old.get(name, 'none')} there, {new.get(name, 'none')} here" for name in others[:3])
        raise ValueError(
            f"model: expected the weights of the checkpoint's model, got others: {len(others)} of {len(new)} differ, "
            f"such as {told}. Give it the model that it was trained with, or another run a folder of its own"
        )


def check_masks(data: DescribedData) -> None:
    """Refuse data without masks.

    Raises:
        ValueError: nothing paints them.
    """
    if not data.has_masks:
        raise ValueError(
            "data.mask_generator: expected what paints the masks that inpainting learns from, got null; set one, such "
            "as class_path: inpaint_module.masks.preset with init_args: {name: sd}"
        )
