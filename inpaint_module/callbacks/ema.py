"""EMA: an exponential moving average of the weights, for validation, prediction and export."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA(EMAWeightAveraging):
    """Lightning's EMAWeightAveraging, with the average on the device that trains.

    Validation runs with the average. A checkpoint's `state_dict` is the average, which `validate`, `predict` and an
    export then use; `current_model_state` is what training goes on from. Weights that do not train keep their bits.

    The average is that of all weights since `update_starting_at_step`, each older step counting `decay` times as much
    as the next: 1 / (1 - decay) steps or so. Until then it is the weights at the start, so start before the first
    validation.

    Args:
        decay: 0..1; the slower the longer the run: 0.99 for a thousand steps, 0.9999 for a hundred thousand.
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
        self._kwargs = {"multi_avg_fn": get_ema_multi_avg_fn(decay)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the weights.

        Raises:
            ValueError: the strategy shards them.
        """
        self._swapped = False
        if pl_module.device_mesh is not None:
            raise ValueError(
                "trainer.callbacks: EMA expects a strategy that keeps all weights on every rank, such as ddp, got "
                f"{type(trainer.strategy).__name__}, which shards them; leave EMA out"
            )
        # the module is not moved before the callbacks are set up: without this the average would stay on the CPU
        self._device = self._device or trainer.strategy.root_device
        # not copied: the trainer, which the command line's factories hold too, has processes that cannot be
        held = {name: each for name, each in vars(pl_module).items() if isinstance(each, partial | Trainer)}
        vars(pl_module).update(dict.fromkeys(held))
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*overrides the configure_model"
            )  # nothing is sharded: see above
            try:
                super().setup(trainer, pl_module, stage)
            finally:
                vars(pl_module).update(held)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the module; what trained stays here, for the checkpoint that is written after this."""
        self._swap_models(pl_module)
        self._swapped = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save both, whichever of them the module holds."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            states = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint["current_model_state"], checkpoint["state_dict"] = states

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """To train, load both; else the average, which is what `state_dict` holds, is there already."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
