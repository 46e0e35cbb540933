"""ConfigFile: LightningCLI's `--config`, which also takes the configs that ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile
from lightning.pytorch.utilities import rank_zero_info

from inpaint_module.commands.config_files import find_config


class ConfigFile(ActionConfigFile):
    """An option that reads a file of the working folder, or else of the package, over what was given before it.

    A URL, or YAML on the command line, is jsonargparse's to read.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read one file.

        Raises:
            TypeError: a name that is neither here nor ships; the parser reports it.
        """
        super().__call__(parser, cfg, _found(values) if _is_name(values) else values, option_string)


def _found(value: str) -> str:
    """The file of a name, and a line that says so if it is the one that ships."""
    try:
        path = find_config(value)
    except ValueError as error:
        raise TypeError(error) from error  # the kind that jsonargparse takes from an action
    if path != Path(value):
        rank_zero_info(f"config: no {value} here, so the one that ships: {path}")
    return str(path)


def _is_name(value: str) -> bool:
    """If a value can only name a local file."""
    try:
        return "://" not in value and isinstance(yaml.safe_load(value), str)
    except yaml.YAMLError:
        return False
