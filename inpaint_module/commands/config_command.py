"""ConfigCommand: the command line of a program that reads config files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inpaint_module.commands.config_files import find_config
from inpaint_module.redaction import redact

_EXAMPLES = {"model": "--model.sampling_steps=4", "data": "--data.batch_size=2"}


class ConfigCommand(argparse.ArgumentParser):
    """A parser with `--config FILE`, which may be given several times, and options that override what files say.

    Args:
        prog: what starts the program.
        description: its manual, shown as it stands.
        parts: which parts of a config the overrides may be of.
        default: the config that is read if none is given, in words; None if one must be given.
    """

    def __init__(
        self,
        prog: str,
        description: str | None,
        *,
        parts: Sequence[str] = ("model", "data"),
        default: str | None = None,
    ) -> None:
        self.parts = tuple(parts)
        examples = " and ".join(_EXAMPLES[part] for part in parts)
        settings: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        epilog = f"Options such as {examples} override what the configs say."
        super().__init__(prog, description=description, epilog=epilog, **settings)
        told = "YAML file of a training run; again for an overlay, which goes over those before it"
        self.add_argument(
            "--config",
            type=Path,
            action="append",
            required=default is None,
            metavar="FILE",
            help=told + (f" (default: {default})" if default else ""),
        )

    def parse(self, arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
        """The options, and the overrides.

        A config that is nowhere or an unknown option ends the program with code 2, as argparse does.
        """
        options, overrides = self.parse_known_args(arguments)
        allowed = tuple(f"--{part}." for part in self.parts)
        if unknown := [each for each in overrides if not each.startswith(allowed) or "=" not in each]:
            self.error(f"expected overrides such as {_EXAMPLES[self.parts[-1]]}, got {redact(' '.join(unknown))}")
        try:
            options.config = [find_config(path) for path in options.config or []]
        except ValueError as error:
            self.error(f"--{error}")
        return options, overrides
