"""The settings of a run as a checkpoint keeps them, and what has changed between two starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from inpaint_module.redaction import redacted

_NO_SETTINGS = ("config", "ckpt_path", "verbose", "weights_only", "return_predictions")  # how it is started
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
    for name in sorted({*before, *now}):
        old, new = (each.get(name, _NONE).replace("'", "") for each in (before, now))  # quoted in older checkpoints
        if old != new and not any(name.startswith(f"{each.name}.") and _is_class(each) for each in found):
            found.append(Change(name, old, new))
    return found


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
