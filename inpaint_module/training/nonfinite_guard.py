"""NonFiniteGuard: an optimizer step whose gradients are not finite changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

_log = logging.getLogger(__name__)


def norm_of(gradients: list[Tensor]) -> Tensor:
    """Their norm together, (), of the parts that this rank holds; no device waits.

    One NaN or infinity makes it none, and a norm beyond float32, by which no clipping could divide, is infinite. Ten
    times as fast as a look at each number, and a few launches on a GPU instead of two for each parameter.
    """
    parts = [each.to_local() if isinstance(each, DTensor) else each for each in gradients]
    parts = [part.float() if part.dtype == torch.float16 else part for part in parts]  # whose norm overflows at 65504
    return get_total_norm(parts) if parts else torch.tensor(0.0)


def whole_norm(trainer: Trainer, optimizer: Optimizer, norm: Tensor) -> Tensor:
    """The norm that `norm_of` gave, of all ranks' parts together, and without the factor of a loss scaler."""
    if any(isinstance(each.grad, DTensor) for each in parameters(optimizer)):
        norm = cast(Tensor, trainer.strategy.reduce(norm.square(), reduce_op="sum")).sqrt()
    plugin = trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is not None and optimizer.param_groups[0].get("fused"):
        return norm / plugin.scaler.get_scale()  # a fused optimizer divides by it later, the others' are divided by now
    return norm


class NonFiniteGuard(Callback):
    """Drops an optimizer step in which any gradient is infinite or NaN, counts it, and gives up after many in a row.

    Weights and the optimizer's state stay as they were; the learning rate's schedule and the stream of samples go on,
    since a dropped step counts as a step. All ranks decide alike: DDP has averaged the gradients by then, and the flag
    is reduced besides, for sharded ones. It costs one look at each gradient and makes the host wait for the device
    once per optimizer step. `train/dropped_steps` and `train/grad_norm`, the norm
    before clipping, are logged, and a checkpoint keeps the count.

    Gradients are looked at before clipping, which would spread a NaN to all of them. With precision 16-mixed the loss
    scaler drops such a step anyway and lowers its scale; here it is counted too.

    Args:
        max_dropped: so many dropped steps in a row end the training.

    Raises:
        ValueError: max_dropped is below 1.
        RuntimeError: in training, at the max_dropped-th dropped step in a row.
    """

    def __init__(self, max_dropped: int = 20):
        if max_dropped < 1:
            raise ValueError(f"NonFiniteGuard max_dropped: expected at least 1, got {max_dropped}")
        self.max_dropped = max_dropped
        self.dropped = 0  # in the whole run
        self.in_a_row = 0
        self._keys: list[str] = []  # of the samples since the last optimizer step
        self._norm: tuple[Tensor | None, list[tuple[int, int]]] = (None, [])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note whose gradients are to come."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._keys = []
        self._keys += batch.get("__key__", []) if isinstance(batch, dict) else []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients, and drop them."""
        gradients = [each.grad for each in parameters(optimizer) if each.grad is not None]
        norm = norm_of(gradients)
        self._norm = norm, _state_of(gradients)
        flag = norm.isfinite().to(trainer.strategy.root_device, torch.float32)
        if trainer.strategy.reduce(flag, reduce_op="min"):
            self.in_a_row = 0
        else:
            self._drop(trainer.global_step, optimizer)
        pl_module.log("train/grad_norm", whole_norm(trainer, optimizer, norm), on_step=True, on_epoch=False)
        pl_module.log("train/dropped_steps", float(self.dropped), on_step=True, on_epoch=False)

    def known_norm(self, gradients: list[Tensor]) -> Tensor | None:
        """Their norm, if it is what was looked at in this step and is clipping's own; None if they have changed."""
        norm, state = self._norm
        plain = all(type(each) is Tensor and each.dtype != torch.float16 for each in gradients)
        return norm if plain and gradients and state == _state_of(gradients) else None

    def _drop(self, step: int, optimizer: Optimizer) -> None:
        """Without gradients, optimizers and clipping pass over a parameter."""
        self.dropped, self.in_a_row = self.dropped + 1, self.in_a_row + 1
        names = f"; its samples: {', '.join(self._keys)}" if self._keys else ""
        # each rank its own samples: any of them may have the value that the sum over ranks has spread
        _log.warning("step %d: gradients are not finite, the step is dropped (%d so far)%s", step, self.dropped, names)
        if self.in_a_row >= self.max_dropped:
            raise RuntimeError(
                f"step {step}: expected finite gradients, got infinite or NaN ones {self.in_a_row} steps in a row "
                f"(NonFiniteGuard max_dropped {self.max_dropped}; {self.dropped} steps dropped in all){names}: look at "
                "the data and the learning rate, then go on from the last checkpoint"
            )
        for each in parameters(optimizer):
            each.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"dropped": self.dropped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.dropped, self.in_a_row = state_dict["dropped"], state_dict["in_a_row"]


def _state_of(gradients: list[Tensor]) -> list[tuple[int, int]]:
    """What changes when one of them is replaced or written to."""
    return [(id(each), each._version) for each in gradients]


def parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    """All that the optimizer updates."""
    return (each for group in optimizer.param_groups for each in group["params"])
