"""All ranks go on from the same checkpoint, or none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy

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
