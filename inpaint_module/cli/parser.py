"""The arguments of one command, on jsonargparse, with configs and options that override them."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser, Namespace

from inpaint_module.cli.errors import DEBUG, parser_message, take_debug
from inpaint_module.cli.older_configs import class_of_data, today, today_options
from inpaint_module.files import redact

if TYPE_CHECKING:
    import torch


PROGRAM = "inpaint"
_WRONG_TYPE = re.compile(r"Expected a <class '(\w+)'>\. Got value: ")
_EXAMPLES = {"model": "--model.sampling_steps=4", "data": "--data.batch_size=2"}


class OneParagraph(ArgumentParser):
    """A parser of jsonargparse that reports what is wrong in one paragraph."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with code 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"{parser_message(message, parser)}\nAll options: {program} --help\n")
        self.exit(2)


class Parser(OneParagraph):
    """The parser of one command.

    Args:
        command: its words, such as "shards make".
        module: the module of which the head is its manual.
        parts: the parts of a config that `--config` and overrides are about; none without `--config`.
        default: the config that is read if none is given, in words; None if one must be given.
    """

    def __init__(
        self, command: str, module: str, *, parts: Sequence[str] = (), default: str | None = None, **settings: Any
    ) -> None:
        settings |= {"formatter_class": argparse.RawDescriptionHelpFormatter, "prog": f"{PROGRAM} {command}"}
        settings["allow_abbrev"] = False
        super().__init__(description=manual(module), **settings)
        self.parts = tuple(parts)
        self.add_argument(DEBUG, action="store_true", help="show where in the code an error comes from")
        if parts:
            examples = " and ".join(_EXAMPLES[part] for part in parts)
            self.epilog = f"Options such as {examples} override what the configs say."
            text = "YAML file of a training run; again for an overlay, which goes over those before it"
            text += f" (default: {default})" if default else ""
            self.add_argument("--config", action="append", required=default is None, metavar="FILE", help=text)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with code 2; what is required is named as it is written."""
        if (head := "the following arguments are required: ") in message:
            names = message.partition(head)[2].split(", ")
            options = {action.dest: action.option_strings[-1] for action in self._actions if action.option_strings}
            message = head + ", ".join(options.get(name, name) for name in names)
        super().error(_WRONG_TYPE.sub(r"expected \1, got ", message), ex)

    def parse(self, arguments: Sequence[str] | None = None) -> tuple[Namespace, list[str]]:
        """The options, and the overrides, each as `--model.name=value`.

        A config that is nowhere or an unknown option ends the program with code 2, as argparse does.
        """
        given = list(sys.argv[1:] if arguments is None else arguments)
        take_debug(given)
        own, overrides = self._apart(given)
        options = self.parse_args(own)
        del options[DEBUG.lstrip("-")]
        if self.parts:
            try:
                options.config = [find_config(path) for path in options.config or []]
            except ValueError as error:
                self.error(f"--{error}")
        return options, overrides

    def _apart(self, given: Sequence[str]) -> tuple[list[str], list[str]]:
        """The command's own arguments, and the overrides."""
        own: list[str] = []
        overrides: list[str] = []
        rest = iter(given)
        for each in rest:
            if not each.startswith(tuple(f"--{part}." for part in self.parts)) or not self.parts:
                own.append(each)
            elif "=" in each:
                overrides.append(each)
            elif (value := next(rest, None)) is None:
                self.error(f"{redact(each)}: expected a value, such as {_EXAMPLES[self.parts[-1]]}")
            else:
                overrides.append(f"{each}={value}")
        return own, overrides


def manual(module: str) -> str:
    """The docstring of a module, read without an import of it, which may take seconds."""
    package, *inside = module.split(".")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the package {package} is not installed")
    path = Path(spec.origin).parent.joinpath(*inside)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def device_of(name: str) -> torch.device:
    """The device of a name; "auto" is the GPU if there is one, else the CPU.

    Raises:
        ValueError: no device of that name is there.
    """
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=found if name == "auto" else name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: expected auto, cpu or a GPU that is there, got {name!r}: {error}") from error


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
