"""How a run optimizes: one optimizer, its learning rate over a run longer or shorter than the schedule, clipping."""

from __future__ import annotations

import inspect
import warnings
from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType, rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedulers

from inpaint_module.training.nonfinite_guard import NonFiniteGuard, parameters

_PLATEAU_METRIC = "train/loss"


class DiffusersSchedule(schedulers.LambdaLR):
    """A schedule of diffusers.optimization, by the name that `diffusers.optimization.get_scheduler` has for it.

    Args:
        optimizer: whose learning rate it sets.
        name: constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial or piecewise_constant.
        num_warmup_steps: optimizer steps from 0 to the full rate.
        num_training_steps: optimizer steps until its end; of no use to the first two and the last.
        num_cycles: of cosine_with_restarts.
        power: of polynomial.
        step_rules: of piecewise_constant, such as "1:10,0.1:20,0.01".

    Raises:
        ValueError: an unknown name, or a number that it needs is missing.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        name: str,
        num_warmup_steps: int = 0,
        num_training_steps: int | None = None,
        num_cycles: int = 1,
        power: float = 1.0,
        step_rules: str | None = None,
    ):
        from diffusers.optimization import get_scheduler

        unused = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=optimizer.defaults["lr"])
        numbers: dict[str, Any] = {"num_training_steps": num_training_steps, "num_cycles": num_cycles, "power": power}
        numbers |= {"num_warmup_steps": num_warmup_steps, "step_rules": step_rules}
        (factor,) = get_scheduler(name, unused, **numbers).lr_lambdas
        super().__init__(optimizer, factor)


_FUSED = ("Adam", "AdamW", "SGD", "Adagrad")  # of torch.optim


def fuse(optimizer: Optimizer) -> bool:
    """Have one of torch's optimizers use its fused kernels, if whoever made it has not said; whether it does now."""
    kind, said = type(optimizer), ("fused", "foreach", "differentiable")
    if kind is not getattr(torch.optim, kind.__name__, None) or kind.__name__ not in _FUSED:
        return False
    if any(optimizer.defaults.get(name) for name in said) or optimizer.defaults["fused"] is False:
        return False
    for group in optimizer.param_groups:
        group["fused"] = True
    return True


class ScheduledModule(LightningModule):
    """A LightningModule with one optimizer and, if it has one, a learning rate schedule that steps with it.

    A schedule that has a length of its own, see `length_of`, may be shorter or longer than the training. After its end
    the rate of its last step is kept; with `stretch_schedule` it is slowed down, or sped up, to `trainer.max_steps`.
    """

    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None
    stretch_schedule: bool
    fuses = False  # whether an optimizer whose maker has not said so is fused, as the run's `speed` chooses
    loaded_step = 0  # of the checkpoint, which `validate` does not tell the trainer

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep its step."""
        self.loaded_step = checkpoint.get("global_step", 0)

    @abstractmethod
    def optimized(self) -> list[Tensor]:
        """The parameters that train."""

    def configure_optimizers(self) -> Any:
        """The optimizer, and the learning rate schedule per step; a ReduceLROnPlateau watches train/loss."""
        optimizer = self.optimizer(self.optimized())
        if self.fuses:
            fuse(optimizer)
        if self.lr_scheduler is None:
            return optimizer
        schedule = self.lr_scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": schedule, "interval": "step"}
        if isinstance(schedule, schedulers.ReduceLROnPlateau):
            config |= {"monitor": getattr(schedule, "monitor", _PLATEAU_METRIC), "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """As Lightning, but no further than the schedule's end, and at its pace."""
        if metric is not None:
            scheduler.step(metric)
        else:
            self._advance(scheduler, self.trainer.global_step - 1, self.trainer.global_step)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """As Lightning; a fused optimizer, which it refuses in mixed precision, too if there is no loss scaler.

        The norm that NonFiniteGuard has computed in this step is not computed again.
        """
        plugin = self.trainer.precision_plugin
        scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or GradClipAlgorithmType.NORM)
        weights = list(parameters(optimizer))
        if gradient_clip_val and algorithm == GradClipAlgorithmType.NORM and not scaled and _is_plain(plugin):
            gradients = [each.grad for each in weights if each.grad is not None]
            guards = (each for each in self.trainer.callbacks if isinstance(each, NonFiniteGuard))  # type: ignore[attr-defined]
            norm = next((guard.known_norm(gradients) for guard in guards), None)
            if norm is not None:
                torch.nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, norm)
                return
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_start(self) -> None:
        """Say what becomes of a schedule that is shorter or longer than the training."""
        for config in self.trainer.lr_scheduler_configs:
            if line := self._schedule_line(config.scheduler):
                rank_zero_info(line)

    def schedule_at(self, step: int) -> tuple[Optimizer, Any]:
        """A new optimizer with the learning rate after `step` optimizer steps, and the schedule (None without one).

        A ReduceLROnPlateau, which depends on what was measured, is at its start.
        """
        optimizer = self.optimizer(self.optimized())
        schedule = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        if schedule is not None and not isinstance(schedule, schedulers.ReduceLROnPlateau):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")  # no optimizer steps
                self._advance(schedule, 0, step)
        return optimizer, schedule

    def overruled(self) -> set[str]:
        """The options of the optimizer that the schedule sets from numbers of its own, as OneCycleLR does with `lr`."""
        optimizer = self.optimizer(self.optimized())
        (group, *_), schedule = optimizer.param_groups, self.lr_scheduler
        group["lr"] = group["lr"] + 1
        before = dict(group)
        if schedule is None:
            return set()
        schedule(optimizer)
        found = {name for name in ("momentum", "betas") if group.get(name) != before.get(name)}
        return found | ({"lr"} if group.get("initial_lr", before["lr"]) != before["lr"] else set())

    def schedule_name(self) -> str:
        """The class of the schedule."""
        return "none" if self.lr_scheduler is None else type(self.schedule_at(0)[1]).__name__

    def _advance(self, schedule: Any, first: int, last: int) -> None:
        """Take the schedule from one number of optimizer steps to another."""
        pace = partial(pace_of, length_of(schedule), self.trainer.max_steps, stretch=self.stretch_schedule)
        for _ in range(pace(last) - pace(first)):
            schedule.step()

    def _schedule_line(self, schedule: Any) -> str:
        length, total, name = length_of(schedule), self.trainer.max_steps, type(schedule).__name__
        if length is None or total in (-1, length):
            return ""
        head, option = f"learning rate: {name} has {length} steps, trainer.max_steps is {total}", "stretch_schedule"
        if self.stretch_schedule:
            return f"{head}: it is stretched to that (model.init_args.{option})"
        rate = self.schedule_at(min(total, length) - 1)[0].param_groups[0]["lr"]
        end = "the rate of its last step is kept from there on" if total > length else "it is cut off at its rate then"
        return f"{head}: {end}, {rate:.3g}; model.init_args.{option}: true stretches it to the training"


def step_of(trainer: Trainer, module: LightningModule) -> int:
    """Optimizer steps that the weights have been trained for; in `validate` and `test` those of the checkpoint."""
    return trainer.global_step or (module.loaded_step if isinstance(module, ScheduledModule) else 0)


def _is_plain(plugin: object) -> bool:
    """Whether its way to clip is torch's own."""
    return type(plugin) is Precision or isinstance(plugin, MixedPrecision)


def pace_of(length: int | None, total: int, step: int, *, stretch: bool) -> int:
    """How many steps a schedule has taken after so many optimizer steps.

    Args:
        length: of the schedule; None for no end.
        total: optimizer steps of the training; -1 for an unknown number, to which nothing is stretched.
        step: optimizer steps so far.
        stretch: to the training.
    """
    if length is None:
        return step
    return max(0, min(step * length // total if stretch and total > 0 else step, length - 1))


def length_of(schedule: Any) -> int | None:
    """Optimizer steps until the end of a schedule that has one; None for one that goes on for ever.

    Those of torch that rise, step down or repeat have none, but for OneCycleLR, which raises after it, and
    CosineAnnealingLR, which turns back there: for cycles there is CosineAnnealingWarmRestarts.
    """
    if isinstance(schedule, schedulers.OneCycleLR):
        return schedule.total_steps
    if isinstance(schedule, schedulers.CosineAnnealingLR):
        return schedule.T_max
    if isinstance(schedule, schedulers.PolynomialLR):
        return schedule.total_iters
    if isinstance(schedule, schedulers.LinearLR):  # upwards it is a warm-up
        return schedule.total_iters if schedule.start_factor > schedule.end_factor else None
    if isinstance(schedule, schedulers.SequentialLR):
        last = length_of(schedule._schedulers[-1])
        return None if last is None else schedule._milestones[-1] + last
    if isinstance(schedule, schedulers.ChainedScheduler):
        return min(filter(None, map(length_of, schedule._schedulers)), default=None)
    if isinstance(schedule, schedulers.LambdaLR):
        return min(filter(None, map(_length_in, schedule.lr_lambdas)), default=None)
    return None


def _length_in(factor: Any) -> int | None:
    """`num_training_steps` of a schedule of diffusers or transformers, which keep it in a closure or a partial."""
    if isinstance(factor, partial):
        return factor.keywords.get("num_training_steps")
    return inspect.getclosurevars(factor).nonlocals.get("num_training_steps") if inspect.isfunction(factor) else None


class LearningRate(Callback):
    """Logs `train/learning_rate` of every optimizer step, and `train/learning_rate_2` and so on of further groups.

    With Prodigy it is what the rate comes to, times the distance that it has found.
    """

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the rate of the step to come."""
        for number, group in enumerate(optimizer.param_groups, 1):
            name = "train/learning_rate" if number == 1 else f"train/learning_rate_{number}"
            pl_module.log(name, float(group["lr"]) * float(group.get("d", 1)), on_step=True, on_epoch=False)
