"""Leftovers: what a kill has kept a run from removing is removed at its next start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from inpaint_module.training.checkpoints import read_seal

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
