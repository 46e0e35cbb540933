"""Config files: where one is, what it says, and the parts of a run that several of them make, one over the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser, Namespace

from inpaint_module.commands.older_configs import class_of_data, today, today_options

_PACKAGE = Path(__file__).parents[1]
SHIPPED = next((path for path in (_PACKAGE / "configs", _PACKAGE.with_name("configs")) if path.is_dir()), _PACKAGE)
_NAMED = {"model": "a model"}


def shipped_configs() -> list[str]:
    """The names of the configs that ship with the package, as a command takes them: `configs/quickstart.yaml`."""
    return [f"{SHIPPED.name}/{path.name}" for path in sorted(SHIPPED.glob("*.yaml"))]


def find_config(path: str | Path) -> Path:
    """The file of this name in the working folder; if there is none, the one that ships under it.

    Raises:
        ValueError: naming the configs that ship, if there is neither.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        return path
    if path.as_posix() in shipped_configs():
        return SHIPPED / path.name
    raise ValueError(f"config: expected a file, got {path}; those that ship: {', '.join(shipped_configs())}")


def read_config(path: str | Path, data_class: str | None = None) -> dict[str, Any]:
    """What one file says; where it is tells `find_config`.

    Args:
        path: of the file.
        data_class: the data module that the files before it name, if they do.

    Raises:
        ValueError: naming the file, if there is none, or if it is no YAML of names and values.
    """
    found = find_config(path)
    try:
        content = yaml.safe_load(found.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: expected YAML, got {found}: {error}") from error
    if not isinstance(content, dict | None):
        raise ValueError(f"config: expected YAML of names and values in {found}, got {type(content).__name__}")
    return today(content or {}, data_class)


def read_parts(configs: Sequence[str | Path], overrides: Sequence[str] = (), **kinds: type) -> Namespace:
    """Parts of a run as plain values, checked: of config files, the later over the earlier, and of overrides.

    Args:
        configs: files, see `find_config`.
        overrides: options of these parts, such as `--data.batch_size=2`.
        kinds: the class of each part, by the part's name: `model=LightningModule`.

    Raises:
        ValueError: a part that no file names, or an override of another part.
        jsonargparse.ArgumentError: a value that its class does not take.
    """
    contents: list[dict[str, Any]] = []
    for path in configs:
        contents.append(read_config(path, named_data(contents)))
    overrides = today_options(overrides, named_data(contents))
    if other := [each for each in overrides if not each.startswith(tuple(f"--{name}." for name in kinds))]:
        raise ValueError(f"expected overrides that begin with --{'. or --'.join(kinds)}., got {' '.join(other)}")
    parts = Namespace()
    for name, kind in kinds.items():
        parser, parsed = _parser_of({name: kind}), None
        for content in contents:
            if name in content:
                parsed = parser.parse_object({name: content[name]}, parsed)
        if parsed is None:
            files = ", ".join(map(str, configs))
            raise ValueError(f"config: expected {_NAMED.get(name, name)} in {files}, got none")
        own = [each for each in overrides if each.startswith(f"--{name}.")]
        parts[name] = parser.parse_args(own, namespace=parsed)[name]
    return parts


def named_data(contents: Sequence[Mapping[str, Any]]) -> str | None:
    """The data module that the last of several configs names; None if none does."""
    return next(filter(None, map(class_of_data, reversed(contents))), None)


def options_today(arguments: Sequence[str]) -> list[str]:
    """`today_options` of a whole command line, for the data module that its `--config` files name."""
    options = ("-c", "--config")
    files = [value for name, value in pairwise(arguments) if name in options]
    files += [each.partition("=")[2] for each in arguments if each.startswith("--config=")]
    contents = []
    for path in files:
        with suppress(ValueError, OSError):  # which the parser reports
            contents.append(read_config(path))
    return today_options(arguments, named_data(contents))


def make_parts(values: Mapping[str, Any] | Namespace, **kinds: type) -> Namespace:
    """Objects of values as `read_parts` gives them or as YAML has them, of the classes `kinds`.

    Raises:
        jsonargparse.ArgumentError: a value that its class does not take.
    """
    parser = _parser_of(kinds)
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before 4.49
    return make(parser.parse_object({name: values[name] for name in kinds}))


def _parser_of(kinds: Mapping[str, type]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    for name, kind in kinds.items():
        parser.add_subclass_arguments(kind, name, required=True)
    return parser
