"""Optimizers that keep an average themselves, such as the schedule-free ones, and say by train() and eval() which
weights the model holds."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from inpaint_module.schedules import ScheduledModule
from inpaint_module.training.nonfinite_guard import parameters

CURRENT = "current_model_state"  # of a checkpoint, where EMA keeps what training goes on from, too


def is_switched(optimizer: Any) -> bool:
    """Whether an optimizer has the switches train() and eval(); torch's own have none."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


class AveragedOptimizer(Callback):
    """Switches such optimizers: steps are taken from the one point, and all else sees the average.

    Validation, the end of the training and a checkpoint's `state_dict` have the average, as with EMA; what training
    goes on from is in `current_model_state`. Both are kept to the bit: the optimizer's own way back moves the weights
    by rounding. Defazio et al. 2024, "The road less scheduled".

    Raises:
        ValueError: when `fit` starts, an average of the average (EMA), or sharded weights.
    """

    def __init__(self) -> None:
        self._trained: list[Tensor] | None = None  # what trains, while the model holds the average

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """What an earlier training left is no business of this one."""
        self._trained = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take steps from here on."""
        for optimizer in _switched(trainer):
            if any(isinstance(each, WeightAveraging) for each in trainer.callbacks):  # type: ignore[attr-defined]
                raise ValueError(
                    f"trainer.callbacks: expected no weight averaging with {type(optimizer).__name__}, which averages "
                    "the weights itself, got one: drop it, such as by trainer.callbacks.EMA: null"
                )
            if pl_module.device_mesh is not None:
                raise ValueError(
                    f"model.optimizer: expected a strategy that keeps all weights on every rank with "
                    f"{type(optimizer).__name__}, got {type(trainer.strategy).__name__}"
                )
            optimizer.train()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the model."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._enter_average(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put what trains back."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._leave_average(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model."""
        self._enter_average(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save both, whichever of them the model holds."""
        if not _switched(trainer):
            return
        inside = self._trained is not None
        self._enter_average(trainer)
        average = _copied(trainer.strategy.lightning_module_state_dict())
        kept = self._trained
        self._leave_average(trainer)
        checkpoint["state_dict"] = average
        checkpoint[CURRENT] = _copied(trainer.strategy.lightning_module_state_dict())
        if "optimizer_states" in checkpoint:
            checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(each) for each in trainer.optimizers]
        if inside:
            self._enter_average(trainer)
            self._trained = kept

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """To train, load what training goes on from."""
        goes_on = trainer.state.fn == TrainerFn.FITTING and CURRENT in checkpoint
        # the trainer has made no optimizer yet
        if goes_on and isinstance(pl_module, ScheduledModule) and is_switched(pl_module.schedule_at(0)[0]):
            pl_module.load_state_dict(checkpoint[CURRENT])

    def _enter_average(self, trainer: Trainer) -> None:
        optimizers = _switched(trainer)
        if optimizers and self._trained is None:
            self._trained = [each.detach().clone() for optimizer in optimizers for each in parameters(optimizer)]
            for optimizer in optimizers:
                optimizer.eval()

    @torch.no_grad()
    def _leave_average(self, trainer: Trainer) -> None:
        if self._trained is None:
            return
        optimizers = _switched(trainer)
        for optimizer in optimizers:
            optimizer.train()
        held = (each for optimizer in optimizers for each in parameters(optimizer))
        for weight, kept in zip(held, self._trained, strict=True):
            weight.copy_(kept)
        self._trained = None


def _switched(trainer: Trainer) -> list[Any]:
    """Those of a trainer's optimizers that have the switches."""
    return [each for each in trainer.optimizers if is_switched(each)]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: each.detach().clone() if isinstance(each, Tensor) else each for name, each in state.items()}
