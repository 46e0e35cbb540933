"""What has changed in a run between two starts, and what its checkpoint must become for it to go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from torch.optim.lr_scheduler import ReduceLROnPlateau

from inpaint_module.cli.older_configs import settings_today
from inpaint_module.files import redacted
from inpaint_module.training.optimization import ScheduledModule

# how it is started, and what is shown
_NO_SETTINGS = ("config", "ckpt_path", "verbose", "weights_only", "return_predictions", "samples")
_NONE = "none"


class Change(NamedTuple):
    """A setting that is not what it was."""

    name: str  # dotted, as model.optimizer.lr
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.name}: {self.before} -> {self.now}"


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """A parsed config, nested, as dotted names and values in words, without secrets.

    `init_args` is left out of names. An entry of a list of classes goes by its class, as `trainer.callbacks.EMA.decay`.
    """
    kept = {name: value for name, value in config.items() if name not in _NO_SETTINGS}
    return dict(_flat("", redacted(_plain(kept))))


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[Change]:
    """What differs; of another class only the class, not its settings.

    Args:
        before: of the checkpoint.
        now: of this run.
    """
    found: list[Change] = []
    before, now = settings_today(before), settings_today(now)
    for name in sorted({*before, *now}):
        old, new = (each.get(name, _NONE).replace("'", "") for each in (before, now))  # quoted in older checkpoints
        if (
            old != new
            and not _moved(old, new)
            and not any(name.startswith(f"{each.name}.") and _is_class(each) for each in found)
        ):
            found.append(Change(name, old, new))
    return found


def _moved(old: str, new: str) -> bool:
    """Whether it is one of our classes under the path that it had before and the one that it has now."""
    paths = old.split("."), new.split(".")
    return paths[0][0] == paths[1][0] == "inpaint_module" and paths[0][-1] == paths[1][-1]


def _is_class(change: Change) -> bool:
    """Whether what has changed is the class of a part, or whether there is one."""
    return any("." in each and each.replace(".", "").isidentifier() for each in change[1:]) or _NONE in change[1:]


def _plain(value: Any) -> Any:
    """Dicts, lists, and values in words that are the same at every start."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    text = str(value)
    return f"{type(value).__module__}.{type(value).__qualname__}" if " at 0x" in text or " object " in text else text


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and value and all(isinstance(each, dict) and "class_path" in each for each in value):
        seen: Counter[str] = Counter()
        for each in value:
            kind = each["class_path"].rpartition(".")[2]
            seen[kind] += 1
            yield from _flat(f"{name}.{kind}{seen[kind] if seen[kind] > 1 else ''}", each)
    elif isinstance(value, dict) and "class_path" in value:
        yield name, value["class_path"]
        for part in ("init_args", "dict_kwargs"):
            if isinstance(value.get(part), dict):
                yield from _flat(name, value[part])
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _flat(f"{name}.{key}" if name else key, each)
    else:
        yield name, _in_words(value)


def _in_words(value: Any) -> str:
    """Without the quotes of Python."""
    if isinstance(value, list):
        return f"[{', '.join(map(_in_words, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_in_words(each)}' for name, each in value.items())}}}"
    return str(value)


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
    lines = [str(change) for change in changed]
    if not isinstance(module, ScheduledModule) or not any(".optimizer." in line for line in lines):
        return lines
    overruled = [f".optimizer.{name}" for name in module.overruled()]
    end = f", without effect: {module.schedule_name()} sets it"
    return [line + end * change.name.endswith(tuple(overruled)) for change, line in zip(changed, lines, strict=True)]


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
