"""What the command lines share: their options, config files and the parts that they make, exit codes."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Parser": "parser",
    "closest": "errors",
    "device_of": "parser",
    "exit_code_of": "errors",
    "find_config": "config_files",
    "make_parts": "config_files",
    "read_config": "config_files",
    "read_parts": "config_files",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: the first thing that `inpaint` does is to look nowhere but at itself."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
