"""The command `inpaint`, which is also `python -m inpaint_module`."""

from inpaint_module.cli.command import COMMANDS, Command, main

__all__ = ["COMMANDS", "Command", "main"]
