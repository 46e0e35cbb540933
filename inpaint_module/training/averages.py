"""Averages of the weights: EMA, and optimizers that keep one themselves, such as the schedule-free ones."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from inpaint_module.training.nonfinite_guard import parameters
from inpaint_module.training.optimization import ScheduledModule

CURRENT = "current_model_state"  # of a checkpoint: what training goes on from


class EMA(EMAWeightAveraging):
    """Lightning's EMAWeightAveraging, with the average on the device that trains.

    Validation runs with the average. A checkpoint's `state_dict` is the average, which `validate`, `predict` and an
    export then use; `current_model_state` is what training goes on from. Weights that do not train keep their bits,
    and are held once, unless `device` is given.

    The average is that of all weights since `update_starting_at_step`, each older step counting `decay` times as much
    as the next: 1 / (1 - decay) steps or so. Until the first update, the average is the weights as they are trained.

    Args:
        decay: 0..1; the slower the longer the run: 0.99 for a thousand steps, 0.9999 for a hundred thousand.
        warmup: at the n-th update after the first, use (1 + n) / (10 + n) where that is less than `decay`: the average
            is then over the last tenth or so of the steps so far, which fits a run of any length.
        update_every_n_steps: optimizer steps between updates.
        update_starting_at_step: the first optimizer step, from 0 on, after which it is updated; null for the first.
        device: where the average lies; null for where the denoiser is.

    Raises:
        ValueError: a decay outside 0..1, updates every 0 steps, or, when `fit` starts, sharded weights.
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        warmup: bool = False,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        device: str | None = None,
    ):
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must be in 0..1 and under 1, got {decay}")
        if update_every_n_steps < 1:
            raise ValueError(f"EMA update_every_n_steps must be at least 1, got {update_every_n_steps}")
        super().__init__(
            device=device,
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
        )
        self._swapped = False
        # Lightning's own sum of two products moves a frozen weight by rounding at each update; this one interpolates
        self._kwargs = {"multi_avg_fn": _average_of_trained(decay, warmup)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """To train, copy the weights; to evaluate what was trained, leave the average in the module.

        Raises:
            ValueError: the strategy shards them.
        """
        if stage == "fit":
            self._swapped = False
        elif self._average_model is not None and not self._swapped:
            self.on_train_end(trainer, pl_module)
        if pl_module.device_mesh is not None:
            raise ValueError(
                "trainer.callbacks: EMA expects a strategy that keeps all weights on every rank, such as ddp, got "
                f"{type(trainer.strategy).__name__}, which shards them; leave EMA out"
            )
        shared = [each for each in pl_module.parameters() if not each.requires_grad] if self._device is None else []
        # the module is not moved before the callbacks are set up: without this the average would stay on the CPU
        self._device = self._device or trainer.strategy.root_device
        # not copied: the trainer, which the command line's factories hold too, has processes that cannot be
        held = {name: each for name, each in vars(pl_module).items() if isinstance(each, partial | Trainer)}
        vars(pl_module).update(dict.fromkeys(held))
        for each in shared:
            vars(each)["__deepcopy__"] = partial(_itself, each)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*overrides the configure_model"
            )  # nothing is sharded: see above
            try:
                super().setup(trainer, pl_module, stage)
            finally:
                vars(pl_module).update(held)
                for each in shared:
                    del vars(each)["__deepcopy__"]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module, unless it is there."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._follow(pl_module)
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put what trains back."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_epoch_end(trainer, pl_module)

    @property
    def holds_both(self) -> bool:
        """Whether it has what trains beside the average: from a `fit` on, in a validation after it too."""
        return self._average_model is not None

    @contextmanager
    def trained_weights(self, pl_module: LightningModule) -> Iterator[None]:
        """Within a validation in or after `fit`, the trained weights in place of the average; to the bit."""
        if not self.holds_both:
            yield
            return
        self._swap_models(pl_module)
        try:
            yield
        finally:
            self._swap_models(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module; what trained stays here, for the checkpoint that is written after this."""
        self._follow(pl_module)
        self._swap_models(pl_module)
        self._swapped = True

    @torch.no_grad()
    def _swap_models(self, pl_module: LightningModule) -> None:
        """As Lightning, but for weights that do not train, which average and module share."""
        assert self._average_model is not None
        both = ((each.parameters(), each.buffers()) for each in (self._average_model.module, pl_module))
        for mine, current in zip(*(itertools.chain(*each) for each in both), strict=True):
            if mine is not current:
                kept = mine.detach().clone()
                mine.copy_(current)
                current.copy_(kept)

    def _follow(self, pl_module: LightningModule) -> None:
        """Before the first update, make the average what is trained."""
        average = self._average_model
        if average is not None and not average.n_averaged:
            kept, trained = (itertools.chain(each.parameters(), each.buffers()) for each in (average.module, pl_module))
            for mine, current in zip(kept, trained, strict=True):
                mine.data.copy_(current.data)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save both, whichever of them the module holds."""
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            checkpoint[CURRENT], checkpoint["state_dict"] = checkpoint["state_dict"], checkpoint[CURRENT]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """To train, load both; else the average, which is what `state_dict` holds, is there already."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
        else:
            self._average_model = None  # of other weights


def _itself(shared: Tensor, memo: dict[int, Any]) -> Tensor:
    """The copy of what is not copied."""
    return shared


def _average_of_trained(decay: float, warmup: bool) -> Callable[[Any, Any, Any], None]:
    """The update, in one pass over all tensors; what average and module share is left alone.

    With `warmup` the decay rises with the number of updates.
    """

    def update(averages: Any, weights: Any, number: Tensor) -> None:
        pairs = [pair for pair in zip(averages, weights, strict=True) if pair[0].data_ptr() != pair[1].data_ptr()]
        if pairs:
            n = int(number) if warmup else 0
            now = min(decay, (1 + n) / (10 + n)) if warmup else decay
            get_ema_multi_avg_fn(now)(*map(list, zip(*pairs, strict=True)), number)

    return update


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
