"""What a trainer must be like for a stream whose position is counted in optimizer steps."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, GradientAccumulationScheduler, Timer


def check_trainer(trainer: Trainer) -> None:
    """Refuse a training that would never end, or whose steps do not tell how many samples they used.

    Raises:
        ValueError: naming the trainer's argument.
    """
    _check_end(trainer)
    _check_steps(trainer)
    _check_accumulation(trainer)


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
