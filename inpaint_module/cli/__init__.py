"""The command `inpaint`, which is also `python -m inpaint_module`, and what all its commands share.

Nothing here but the standard library is imported at once: `inpaint` first looks where packages are to be looked for.
"""

from inpaint_module.cli.command import COMMANDS, Command, main

__all__ = ["COMMANDS", "Command", "main"]
