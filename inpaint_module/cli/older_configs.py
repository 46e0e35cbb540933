"""Configs as versions before this one wrote them, brought to today's form: run folders and overlays of people hold
them."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace

_HOME = "inpaint_module.base_models"
_PRESENT_HOMES = {  # by package or module that is no more, or has its classes elsewhere
    **dict.fromkeys(("inpaint_module.layouts", "inpaint_module.denoisers", "inpaint_module.conditioning"), _HOME),
    **dict.fromkeys(
        (f"inpaint_module.{name}" for name in ("callbacks", "checkpoints", "schedules")), "inpaint_module.training"
    ),
    "datamodules.samples.Samples": "datamodules",  # of the module of today, not of the package of then
    **dict.fromkeys((f"datamodules.{name}" for name in ("own_masks", "images", "samples")), "datamodules.decode"),
    "datamodules.stream": "datamodules.order",
}
_ROOT = Path(__file__).parents[2]
_PARTS = ("denoiser", "encoder", "layout", "scheduler", "conditioning", "call")
_MADE = ("denoiser", "layout", "scheduler")
_PARTS_OF_DATA = {
    "order": ("window", "source_weights", "bucket_step", "bucket_max_aspect"),
    "decoder": (
        *("min_scale", "flip", "transforms", "upscale", "background", "max_pixels", "reducing_gap"),
        *("max_caption_bytes", "caption_key", "label_key"),
    ),
    "loading": ("max_bad_share", "stall_timeout", "cache_dir", "cache_bytes"),
    "masks": ("padding_mask_crop",),
}
MOVED_DATA = {name: f"{part}.{name}" for part, names in _PARTS_OF_DATA.items() for name in names} | {
    "mask_sources": "masks.sources",
    "own_mask_probability": "masks.share",
    "transfer_probability": "masks.removal_share",
    "allow_empty_masks": "masks.allow_empty",
    "graph_masks": "masks.cuda_graphs",
}
_DATA = "WebDatasetDataModule"
_OF_DATA = re.compile(r"--data\.(init_args\.)?(?P<name>\w+)(?P<rest>$|[.=+].*)", re.DOTALL)
_OUR_PATH = re.compile(r"(?<![\w./-])(inpaint_module|datamodules)(\.\w+)+\.[A-Z]\w*\b")
_Init = TypeVar("_Init", bound=Callable[..., None])


def today(config: dict[str, Any], data_class: str | None = None) -> dict[str, Any]:
    """The content of a config file, with the arguments of model and data in their parts and classes where they are now.

    A `base` with a `path` is a `BaseModel`, over whatever a config before it had there.

    Args:
        config: as YAML has it.
        data_class: of the configs before this one, if they name one.

    Raises:
        ValueError: naming an argument of the data that is there both where it was and where it is.
    """
    return _model_today(_data_today(_renamed(config), data_class))


def class_of_data(config: Mapping[str, Any]) -> str | None:
    """The data module that a config names; None if it names none."""
    data = config.get("data")
    path = data["class_path"] if isinstance(data, Mapping | Namespace) and "class_path" in data else data
    return path if isinstance(path, str) else None


def _data_today(config: dict[str, Any], data_class: str | None) -> dict[str, Any]:
    data = config.get("data")
    if not isinstance(data, dict):
        return config
    holder = "init_args" if isinstance(data.get("init_args"), dict) else None
    arguments = dict(data["init_args"] if holder else data)
    moved = _moving(arguments, class_of_data(config) or data_class)
    for old in moved:
        part, _, name = MOVED_DATA[old].partition(".")
        given = arguments.get(part) or {}
        if not isinstance(given, dict) or name in given:
            raise ValueError(f"data.{old}: expected it in data.{part}.{name} alone, where it is now, got both")
        arguments[part] = given | {name: arguments.pop(old)}
    _say_moved(*moved)
    return config | {"data": {**data, "init_args": arguments} if holder else arguments}


def _moving(names: Iterable[str], data_class: str | None) -> list[str]:
    """Those of the names that are arguments which have a part now, of our data module or one made of it."""
    names = [name for name in names if name in MOVED_DATA]
    if not names or data_class is None or data_class.rpartition(".")[2] == _DATA:
        return names
    module, _, name = data_class.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except Exception:  # whatever a module of the user raises, jsonargparse reports
        return []
    ours = any(each.__name__ == _DATA for each in getattr(found, "__mro__", ()))
    return [name for name in names if ours and name not in inspect.signature(found).parameters]


@functools.cache
def _say_moved(*names: str) -> None:
    """One line, once, for arguments of the data that were taken from where they were."""
    if names:
        from lightning.pytorch.utilities import rank_zero_info  # seconds, for which a command's --help need not wait

        places = ", ".join(f"data.{name} is data.{MOVED_DATA[name]} now" for name in names)
        rank_zero_info(f"written for an older version, and taken as such: {places}")


def settings_today(settings: Mapping[str, str]) -> dict[str, str]:
    """Dotted names of settings, as `changes.settings_of` makes them, where they are now."""
    if not settings.get("data", _DATA).endswith(_DATA):
        return dict(settings)
    found = {_setting_today(name): value for name, value in settings.items()}
    if found.get("model.compile") == "None":
        found["model.compile"] = "False"
    return found


def _setting_today(name: str) -> str:
    name = "model.compile" if name == "model.compile_mode" else name
    old, dot, rest = name.removeprefix("data.").partition(".")
    return f"data.{MOVED_DATA[old]}{dot}{rest}" if name.startswith("data.") and old in MOVED_DATA else name


def data_settings_of_before(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the data module, nested, as they were before they had parts: what records of then hold."""
    flat = {name: value for name, value in arguments.items() if name not in (*_PARTS_OF_DATA, "masks")}
    for old, place in MOVED_DATA.items():
        part, _, name = place.partition(".")
        if name in (arguments.get(part) or {}):
            flat[old] = arguments[part][name]
    return flat


def takes_older_arguments(init: _Init) -> _Init:
    """A constructor of a data module that also takes arguments which have a part now, and says where they are.

    Raises:
        ValueError: if an argument and the part that it belongs to are both given.
    """
    parameters = inspect.signature(init).parameters

    @functools.wraps(init)
    def taking(self: Any, *args: Any, **given: Any) -> None:
        moved = {name: given.pop(name) for name in list(given) if name in MOVED_DATA}
        parts: dict[str, Any] = {}
        for old, value in moved.items():
            part, _, name = MOVED_DATA[old].partition(".")
            if part in given:
                kind = type(parameters[part].default).__name__
                raise ValueError(f"{old}: expected it in {part}={kind}({name}=...), where it is now, got both")
            parts[part] = replace(parts.get(part, parameters[part].default), **{name: value})
        _say_moved(*moved)
        init(self, *args, **given, **parts)

    return taking  # type: ignore[return-value]


def _model_today(config: dict[str, Any]) -> dict[str, Any]:
    model = config.get("model")
    if not isinstance(model, dict) or not str(model.get("class_path", "InpaintDiffusion")).endswith("InpaintDiffusion"):
        return config
    holder = "init_args" if isinstance(model.get("init_args"), dict) else None
    arguments = dict(model["init_args"] if holder else model)
    moved = {name: arguments.pop(name) for name in _PARTS if name in arguments}
    if "compile_mode" in arguments:
        arguments["compile"] = arguments.pop("compile_mode") or False
    base = dict(arguments["base"]) if isinstance(arguments.get("base"), dict) else {}
    if moved:
        base["init_args"] = {**moved, **(base.get("init_args") or {})}
        if "class_path" in model and all(name in moved for name in _MADE):
            base.setdefault("class_path", f"{_HOME}.ModelParts")
    inner = base.get("init_args") if isinstance(base.get("init_args"), dict) else base
    if isinstance(inner, dict) and "path" in inner and "class_path" not in base:
        base = {"class_path": f"{_HOME}.BaseModel", "init_args": inner}
    if base:
        arguments["base"] = base
    return config | {"model": {**model, "init_args": arguments} if holder else arguments}


def today_options(arguments: Sequence[str], data_class: str | None = None) -> list[str]:
    """Options of a command line: those of the model's parts under `--model.base`, those of the data's in theirs, and
    classes where they are now.

    Args:
        arguments: of the command.
        data_class: of the configs, if they name one.
    """
    found, moved = [], []
    arguments = [
        _OUR_PATH.sub(lambda path: _present(path[0]), each) for each in _with_files_today(arguments, data_class)
    ]
    given = [
        value.partition("=")[2] or following
        for value, following in zip(arguments, [*arguments[1:], ""], strict=False)
        if value.partition("=")[0] in ("--data", "--data.class_path")
    ]
    named = [path for each in given if (path := _class_in(each))]
    options = [option for each in arguments if (option := _OF_DATA.match(each))]
    moving = _moving(dict.fromkeys(option["name"] for option in options), next(iter([*named[::-1], data_class])))
    for each in arguments:
        if (option := _OF_DATA.match(each)) and option["name"] in moving:
            moved.append(option["name"])
            each = f"--data.{MOVED_DATA[option['name']]}{option['rest']}"
        each = re.sub(r"^--model\.(init_args\.)?compile_mode(?=$|=)", r"--model.\1compile", each)
        for name in _PARTS:
            for begin in (f"--model.{name}", f"--model.init_args.{name}"):
                if each == begin or each.startswith((f"{begin}.", f"{begin}=")):
                    each = f"--model.base.{name}{each.removeprefix(begin)}"
        found.append(each)
    _say_moved(*dict.fromkeys(moved))
    return found


def _with_files_today(arguments: Sequence[str], data_class: str | None) -> list[str]:
    """In the place of a file of before, as in `--data FILE.yaml`, what it says as it is written now, as JSON.

    Raises:
        ValueError: there is no such file.
    """
    found = list(arguments)
    for at, each in enumerate(arguments):
        option, equals, value = each.partition("=")
        if option not in ("--data", "--model"):
            continue
        place = at if equals else at + 1
        value = value if equals else "".join(arguments[place : place + 1])
        if value.endswith((".yaml", ".yml")) and not Path(value).expanduser().is_file():
            raise ValueError(f"{option} {value}: expected a YAML file, or a class, found no such file in {Path.cwd()}")
        if isinstance(content := _content(value), dict):
            part = option.removeprefix("--")
            now = today({part: content}, data_class)[part]
            if now != content:
                found[place] = f"{option}={json.dumps(now)}" if equals else json.dumps(now)
    return found


def _content(value: str) -> Any:
    """What a YAML file holds, or a text of JSON; the value itself where it is neither, or cannot be read."""
    try:
        if value.endswith((".yaml", ".yml")):
            value = Path(value).expanduser().read_text(encoding="utf-8")
        elif not value.startswith("{"):
            return value
        return yaml.safe_load(value)
    except (OSError, ValueError, yaml.YAMLError):  # the parser says what is wrong with it
        return value


def _class_in(value: str) -> str | None:
    """The class that the value of `--data` names, by itself, in a file or in JSON; None if none."""
    content = _content(value)
    return content.get("class_path") if isinstance(content, dict) else value


def _renamed(value: Any) -> Any:
    """The same with each `class_path` of a former home at its present one."""
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {name: _renamed(each) for name, each in value.items()}
    if isinstance(path := found.get("class_path"), str):
        found["class_path"] = _present(path)
    return found


def _present(path: str) -> str:
    """Where a class of ours is: a module that is no more has become part of its package, which exports the class."""
    *above, name = path.split(".")
    if above[:1] not in (["inpaint_module"], ["datamodules"]) or above[-1][:1].isupper():  # a method of a class
        return path
    module = next((now for old, now in _PRESENT_HOMES.items() if f"{path}.".startswith(f"{old}.")), None)
    above = module.split(".") if module else above
    while not (_ROOT.joinpath(*above).is_dir() or _ROOT.joinpath(*above[:-1], f"{above[-1]}.py").is_file()):
        above.pop()
    return ".".join([*above, name])
