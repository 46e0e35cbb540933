"""The arguments of one command, on jsonargparse, with configs and options that override them."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from inpaint_module.commands.config_files import find_config
from inpaint_module.commands.errors import DEBUG, parser_message, take_debug
from inpaint_module.redaction import redact

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
            told = "YAML file of a training run; again for an overlay, which goes over those before it"
            told += f" (default: {default})" if default else ""
            self.add_argument("--config", action="append", required=default is None, metavar="FILE", help=told)

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
