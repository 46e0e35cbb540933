"""LightningCLI's parser; its `--config` also takes the configs that ship, and changes callbacks and loggers by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info

from inpaint_module.cli.errors import closest
from inpaint_module.cli.older_configs import class_of_data, today
from inpaint_module.cli.parser import OneParagraph, find_config, options_today, read_config

PIECES = ("callbacks", "logger")  # lists of the trainer whose entries have names
Entry = dict[str, Any]
_ENTRY = ("class_path", "init_args", "dict_kwargs")


class Parser(OneParagraph, LightningArgumentParser):
    """LightningCLI's parser, which reports what is wrong in one paragraph."""

    data_class: str | None = None  # the data module that the configs before the next one name

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """As jsonargparse; options of a model's parts may be those of older versions."""
        args = sys.argv[1:] if args is None else args
        args = options_today(args) if isinstance(args, list | tuple) else args
        return super().parse_args(args, *more, **options)

    def parse_string(self, content: str, *more: Any, **options: Any) -> Namespace:
        """As jsonargparse; a config may be one of older versions."""
        try:
            read = yaml.safe_load(content)
        except yaml.YAMLError:  # which jsonargparse reports
            read = None
        if isinstance(read, dict) and read != (current := today(read, self.data_class)):
            content = yaml.safe_dump(current, sort_keys=False)
        return super().parse_string(content, *more, **options)


class ConfigFile(ActionConfigFile):
    """An option that reads a file of the working folder, or else of the package, over what was given before it.

    Where `trainer.callbacks` or `trainer.logger` of a file is a mapping of names, it changes the list before it, see
    `changed_pieces`. A list replaces that list, as it does in Lightning. A URL is jsonargparse's to read.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read one file, or YAML on the command line.

        Raises:
            TypeError: a name that is neither here nor ships, or a piece that cannot be changed; the parser reports it.
        """
        parser.data_class = class_of_data({"data": cfg.get("data")})
        try:
            if _is_name(values):
                values = _found(values)
                content: Any = read_config(values, parser.data_class)
            else:
                content = yaml.safe_load(values) if "://" not in values else None
            if changed := _with_pieces(content, cfg):
                values = json.dumps(changed)
        except ValueError as error:
            raise TypeError(error) from error  # the kind that jsonargparse takes from an action
        except yaml.YAMLError:
            pass  # which jsonargparse reports
        super().__call__(parser, cfg, values, option_string)


def changed_pieces(before: Sequence[Entry], changes: Mapping[str, Any], where: str) -> list[Entry]:
    """A list of callbacks or loggers with some of them changed, dropped or added.

    Args:
        before: entries with `class_path`, and `init_args` where they have any.
        changes: by the name of an entry's class, `EMA` for `inpaint_module.training.EMA`, in any case of letters: None
            drops the entry, `init_args` go over its own, another `class_path` replaces it. A `class_path` under a name
            that no entry has is added at the end.
        where: the key, for messages.

    Raises:
        ValueError: a name that is not there, or that two entries have.

    Example:
        >>> changed_pieces([{"class_path": "x.EMA"}, {"class_path": "x.Grid"}], {"ema": None}, "trainer.callbacks")
        [{'class_path': 'x.Grid'}]
    """
    entries = [dict(entry) for entry in before]
    for name, change in changes.items():
        same = [number for number, entry in enumerate(entries) if _name(entry).lower() == str(name).lower()]
        if len(same) > 1:
            raise ValueError(f"{where}.{name}: expected the name of one entry, got that of {len(same)}; give the list")
        if not same and not (isinstance(change, Mapping) and "class_path" in change):
            known = [_name(entry) for entry in entries]
            text = f"expected one of {', '.join(known) or 'none'}, or a class_path to add"
            raise ValueError(f"{where}.{name}: {text}, got {change!r}{closest(str(name), known)}")
        if change is not None and not isinstance(change, Mapping):
            raise ValueError(f"{where}.{name}: expected null, init_args or a class_path, got {change!r}")
        place = same[0] if same else len(entries)
        entries[place : place + 1] = _changed(entries, same, change)
    return entries


def _changed(entries: Sequence[Entry], same: Sequence[int], change: Mapping[str, Any] | None) -> list[Entry]:
    """What comes in the place of an entry."""
    if change is None:
        return []
    old = entries[same[0]] if same else {}
    if change.get("class_path", old.get("class_path")) != old.get("class_path"):
        return [dict(change)]
    return [old | dict(change) | {"init_args": (old.get("init_args") or {}) | (change.get("init_args") or {})}]


def split_pieces(arguments: Sequence[str]) -> list[str]:
    """Arguments of the command line with those of one piece, `--trainer.callbacks.EMA=null`, as a config at the end."""
    rest: list[str] = []
    configs: list[str] = []
    given, appended = iter(arguments), False
    for each in given:
        option, found, value = each.partition("=")
        key, *inside = option.removeprefix("--trainer.").split(".")
        named = option.startswith("--trainer.") and key in PIECES and inside and inside[0] not in (*_ENTRY, "help")
        appended |= option in [f"--trainer.{piece}+" for piece in PIECES]
        if not named or (appended and len(inside) == 1 and inside[0].islower()):  # an option of the entry just appended
            rest.append(each)
            continue
        content = yaml.safe_load(value if found else next(given, "null"))
        if len(inside) > 1 and inside[1] not in _ENTRY:
            inside.insert(1, "init_args")
        for name in reversed(inside):
            content = {name: content}
        configs += ["--config", json.dumps({"trainer": {key: content}})]
    return rest + configs


def _with_pieces(content: Any, cfg: Any) -> dict[str, Any] | None:
    """A config's content with whole lists in place of names, if it has any."""
    trainer = content.get("trainer") if isinstance(content, dict) else None
    if not isinstance(trainer, dict):
        return None
    lists: dict[str, Any] = {}
    for key in PIECES:
        changes, before = trainer.get(key), _before(cfg, key)
        if isinstance(changes, dict) and set(changes) <= {"init_args"} and len(before) > 1:
            changes = {_name(before[0]): changes}  # without a name: of the first, which names the run folder
        if isinstance(changes, dict) and _is_named(changes):
            lists[key] = changed_pieces(before, changes, f"trainer.{key}")
            cfg[f"trainer.{key}"] = None  # or jsonargparse gives arguments of one entry to another
    return {**content, "trainer": {**trainer, **lists}} if lists else None


def _is_named(value: dict[str, Any]) -> bool:
    return bool(value) and not any(name in value for name in _ENTRY)


def _before(cfg: Any, key: str) -> list[Entry]:
    """The entries of the configs before."""
    value = cfg.get(f"trainer.{key}") if isinstance(cfg, Namespace) else None
    entries = value if isinstance(value, list) else [value] if value and not isinstance(value, bool) else []
    plain = [entry.as_dict() if isinstance(entry, Namespace) else entry for entry in entries]
    return [{"class_path": entry} if isinstance(entry, str) else entry for entry in plain]


def _name(entry: Entry) -> str:
    return str(entry["class_path"]).rpartition(".")[2]


def _found(value: str) -> str:
    """The file of a name, and a line that says so if it is the one that ships."""
    path = find_config(value)
    if path != Path(value):
        rank_zero_info(f"config: no {value} here, so the one that ships: {path}")
    return str(path)


def _is_name(value: str) -> bool:
    """If a value can only name a local file."""
    try:
        return "://" not in value and isinstance(yaml.safe_load(value), str)
    except yaml.YAMLError:
        return False
