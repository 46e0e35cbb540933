"""Configs as versions before this one wrote them, brought to today's form: run folders and overlays of people hold
them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HOME = "inpaint_module.base_models"
_FORMER_HOMES = ("inpaint_module.layouts.", "inpaint_module.denoisers.", "inpaint_module.conditioning.")
_PARTS = ("denoiser", "encoder", "layout", "scheduler", "conditioning", "call")
_MADE = ("denoiser", "layout", "scheduler")


def today(config: dict[str, Any]) -> dict[str, Any]:
    """The content of a config file, with the model's parts under `base` and classes where they are now.

    A `base` with a `path` is a `BaseModel`, over whatever a config before it had there.
    """
    config = _renamed(config)
    model = config.get("model")
    if not isinstance(model, dict) or not str(model.get("class_path", "InpaintDiffusion")).endswith("InpaintDiffusion"):
        return config
    holder = "init_args" if isinstance(model.get("init_args"), dict) else None
    arguments = dict(model["init_args"] if holder else model)
    moved = {name: arguments.pop(name) for name in _PARTS if name in arguments}
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


def today_options(arguments: Sequence[str]) -> list[str]:
    """Options of a command line, those of the model's parts under `--model.base`."""
    found = []
    for each in arguments:
        for name in _PARTS:
            for begin in (f"--model.{name}", f"--model.init_args.{name}"):
                if each == begin or each.startswith((f"{begin}.", f"{begin}=")):
                    each = f"--model.base.{name}{each.removeprefix(begin)}"
        found.append(each)
    return found


def _renamed(value: Any) -> Any:
    """The same with each `class_path` of a former home at its present one."""
    if isinstance(value, list):
        return [_renamed(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {name: _renamed(each) for name, each in value.items()}
    path = found.get("class_path")
    if isinstance(path, str) and path.startswith(_FORMER_HOMES):
        found["class_path"] = f"{_HOME}.{path.rpartition('.')[2]}"
    return found
