"""StreamDataModule: a data module over an endless stream, whose checkpoint is one position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.checks import check_plan


class StreamDataModule(LightningDataModule, ABC):
    """Knows where the stream is, by the trainer's optimizer steps, and goes on there after a restart.

    Nothing that prefetches counts: a batch in a worker or inside an accumulation window is not used yet.
    """

    batch_size: int  # samples of one batch on one device

    def __init__(self) -> None:
        super().__init__()
        self._start = 0
        self._start_step: int | None = None  # the trainer's global_step at position _start

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same sample; plain values."""

    def rank_and_world(self) -> tuple[int, int]:
        """Rank and number of ranks as to data: tensor-parallel ranks share theirs."""
        options = (self.trainer and self.trainer.distributed_sampler_kwargs) or {"rank": 0, "num_replicas": 1}
        return options["rank"], options["num_replicas"]

    def global_step(self) -> int:
        """Optimizer steps so far; 0 without a trainer."""
        return self.trainer.global_step if self.trainer else 0

    def position(self) -> int:
        """The first position that no optimizer step has used; batches inside an accumulation window do not count."""
        if self.trainer is None or self._start_step is None:
            return self._start
        steps = self.global_step() - self._start_step
        return self._start + steps * self.trainer.accumulate_grad_batches * self.rank_and_world()[1] * self.batch_size

    def advance(self, samples: int) -> None:
        """Count samples, of all ranks, that a loop without a trainer has used; its checkpoint goes on after them."""
        self._start += samples

    def begin(self) -> None:
        """Count optimizer steps from here on, unless they are counted already."""
        if self._start_step is None:
            self._start_step = self.global_step()

    def next_position(self) -> int:
        """Where the training loader starts anew: `trainer.overfit_batches` repeats the first batches."""
        repeat = self.trainer and self.trainer.overfit_batches  # type: ignore[attr-defined]
        return self._start if repeat else self.position()

    def _settle(self) -> None:
        """Make the position independent of the trainer, which is about to go."""
        self._start, self._start_step = self.position(), None

    def teardown(self, stage: str) -> None:
        """Keep the position: another fit goes on from there."""
        if stage == "fit":
            self._settle()

    def on_exception(self, exception: BaseException) -> None:
        """As after a fit."""
        self._settle()

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream and what it refers to."""
        return {"position": self.position(), **self.plan()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a checkpoint's position; evaluation ignores it.

        Raises:
            ValueError: if the checkpoint's seed, window, dataset or order is not this run's.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return
        check_plan(self.plan(), state_dict)
        self._start, self._start_step = state_dict["position"], None
