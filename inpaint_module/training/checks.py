"""Before a run goes on: what must be alike on all ranks and in the checkpoint is compared, and what a kill has left in
the folder is removed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info
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
        examples = "; ".join(
            f"{name}: {old.get(name, 'none')} there, {new.get(name, 'none')} here" for name in others[:3]
        )
        raise ValueError(
            f"model: expected the weights of the checkpoint's model, got others: {len(others)} of {len(new)} differ, "
            f"such as {examples}. Give it the model that it was trained with, or another run a folder of its own"
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


_REPLACED = "replaced_checkpoints"
_UNFINISHED = "*.ckpt.tmp"


class Leftovers(Callback):
    """Removes what a kill has left in the folders of the ModelCheckpoints, when `fit` starts, and names it.

    - Temporary files, `*.ckpt.tmp`: checkpoints that never became whole.
    - Checkpoints that newer or better ones had replaced: a ModelCheckpoint writes first and removes then. Each
      checkpoint holds the names of those that it replaces. What no checkpoint names, such as a copy, stays.

    Args:
        goes_on: that the checkpoint which `fit` is given was chosen for it, so that a ModelCheckpoint may remove it in
            its turn; one that the user has named stays.
    """

    def __init__(self, *, goes_on: bool = False) -> None:
        self.goes_on = goes_on
        self._kept: dict[str, set[str]] = {}  # state key of a ModelCheckpoint -> names of its files
        self._replaced: dict[str, set[str]] = {}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Learn what the checkpoint has replaced."""
        self._replaced = {key: set(names) for key, names in checkpoint.get(_REPLACED, {}).items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what is left, before the first checkpoint is written."""
        loaded = trainer.ckpt_path
        if self.goes_on:
            trainer.ckpt_path = None  # which a ModelCheckpoint never removes
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                self._kept[callback.state_key] = _files_of(callback)
                if trainer.is_global_zero:
                    self._remove(callback, loaded)

    def _remove(self, callback: ModelCheckpoint, loaded: Any) -> None:
        folder = Path(callback.dirpath or "")
        left = list(folder.rglob(_UNFINISHED))
        if callback.save_top_k != -1:  # which keeps all
            replaced = self._replaced.get(callback.state_key, set()) - _files_of(callback)
            left += [path for path in map(folder.joinpath, replaced) if _is_checkpoint(path)]
        left = [path for path in left if path.is_file() and path.absolute() != Path(loaded or "").absolute()]
        for path in left:
            path.unlink(missing_ok=True)
        if left:
            rank_zero_info(f"resume: removed what a kill had left: {', '.join(map(str, sorted(left)))}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note what this checkpoint, or an earlier one, replaces and nobody has removed yet."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                key, folder, files = callback.state_key, Path(callback.dirpath or ""), _files_of(callback)
                replaced = (self._kept.get(key, set()) | self._replaced.get(key, set())) - files
                self._replaced[key] = {name for name in replaced if (folder / name).exists()}
                self._kept[key] = files
        checkpoint[_REPLACED] = {key: sorted(names) for key, names in self._replaced.items()}


def _files_of(callback: ModelCheckpoint) -> set[str]:
    """The names, in its folder, of the checkpoints that a ModelCheckpoint keeps."""
    paths = {callback.best_model_path, callback.last_model_path, *callback.best_k_models}
    names = {os.path.relpath(path, callback.dirpath) for path in paths if path}
    return {name for name in names if not name.startswith("..")}


def _is_checkpoint(path: Path) -> bool:
    """Whether this program wrote it, as one file."""
    try:
        return not path.is_symlink() and bool(read_seal(path))
    except (OSError, ValueError):
        return False
