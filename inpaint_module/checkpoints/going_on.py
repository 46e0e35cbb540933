"""What a checkpoint must become before a run with other settings goes on from it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from torch.optim.lr_scheduler import ReduceLROnPlateau

from inpaint_module.checkpoints.settings import Change
from inpaint_module.schedules import ScheduledModule

_OF_THE_OPTIMIZER = {"optimizer", "lr_scheduler", "stretch_schedule"}


def adapt(checkpoint: dict[str, Any], trainer: Trainer, module: LightningModule, changed: list[Change]) -> None:
    """Have the checkpoint follow what has changed: the settings are those of this run, the rest its own.

    Another optimizer starts anew, with its learning rate where the schedule is by now. One of the same class keeps its
    moments. Without weight averaging, a run that had it goes on from the weights that were trained.

    Raises:
        ValueError: naming what the optimizer's state does not fit, if no record says that it has changed.
    """
    if "current_model_state" in checkpoint and not _averages(trainer):
        rank_zero_info("resume: no weight averaging any more: goes on from the weights that were trained last")
        module.load_state_dict(checkpoint["current_model_state"])
    if not isinstance(module, ScheduledModule) or not checkpoint.get("optimizer_states"):
        return
    if any(map(_is_optimizer, changed)):
        _renew(checkpoint, module)
    else:
        _check_optimizer(checkpoint["optimizer_states"][0], module)
        if _concerns_rates(changed, module):
            _set_rates(checkpoint, trainer, module)


def lines_of(changed: list[Change], module: LightningModule) -> list[str]:
    """A line for each change; of an option of the optimizer that the schedule sets by itself, it says so."""
    told = [str(change) for change in changed]
    if not isinstance(module, ScheduledModule) or not any(".optimizer." in line for line in told):
        return told
    overruled = [f".optimizer.{name}" for name in module.overruled()]
    end = f", without effect: {module.schedule_name()} sets it"
    return [line + end * change.name.endswith(tuple(overruled)) for change, line in zip(changed, told, strict=True)]


def _averages(trainer: Trainer) -> bool:
    return any(isinstance(each, WeightAveraging) for each in trainer.callbacks)  # type: ignore[attr-defined]


def _concerns_rates(changed: list[Change], module: ScheduledModule) -> bool:
    """Whether optimizer or schedule have other settings."""
    own = any(_OF_THE_OPTIMIZER & set(change.name.split(".")) for change in changed)
    return own or (module.stretch_schedule and any(change.name == "trainer.max_steps" for change in changed))


def check_sharded(changed: list[Change]) -> None:
    """Refuse another optimizer where the strategy itself loads the state, of sharded weights, into the optimizer.

    Raises:
        ValueError: naming both classes.
    """
    for change in filter(_is_optimizer, changed):
        raise ValueError(
            f"{change.name}: expected {change.before}, that of the checkpoint, as its state is sharded, got "
            f"{change.now}: give this run a folder of its own"
        )


def _is_optimizer(change: Change) -> bool:
    return change.name.rpartition(".")[2] == "optimizer"


def _renew(checkpoint: dict[str, Any], module: ScheduledModule) -> None:
    optimizer, schedule = module.schedule_at(checkpoint["global_step"])
    checkpoint["optimizer_states"] = [optimizer.state_dict()]
    checkpoint["lr_schedulers"] = [schedule.state_dict()] if schedule is not None else []
    rank_zero_info(f"resume: the state of {type(optimizer).__name__} starts anew")


def _set_rates(checkpoint: dict[str, Any], trainer: Trainer, module: ScheduledModule) -> None:
    optimizer, schedule = module.schedule_at(checkpoint["global_step"])
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    if not trainer.strategy.lightning_restore_optimizer:  # loaded already
        groups = trainer.optimizers[0].param_groups
    for old, new in zip(groups, optimizer.param_groups, strict=True):
        old.update({name: value for name, value in new.items() if name != "params"})
    checkpoint["lr_schedulers"] = [schedule.state_dict()] if schedule is not None else []
    if isinstance(schedule, ReduceLROnPlateau):
        rank_zero_info("resume: ReduceLROnPlateau starts anew")


def _check_optimizer(saved: dict[str, Any], module: ScheduledModule) -> None:
    """Refuse a state that is another optimizer's, which would end in a KeyError at its first step."""
    optimizer = module.optimizer(module.optimized())
    counts = [[len(group["params"]) for group in each] for each in (saved["param_groups"], optimizer.param_groups)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"model: expected to train as many parameters as the checkpoint's run, {sum(counts[0])}, got "
            f"{sum(counts[1])}: start from its weights in a new run folder, or train the same ones"
        )
    if missing := optimizer.defaults.keys() - saved["param_groups"][0].keys():
        raise ValueError(
            f"model.optimizer: expected the class that the checkpoint was trained with, got "
            f"{type(optimizer).__name__}: its {', '.join(sorted(missing))} are not in the checkpoint"
        )
