"""How a command ends: with its exit code, and one line on stderr where it fails."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from inpaint_module.redaction import redact

FAILED, STOPPED = 1, 130
GOES_ON = "stopped; the same command goes on from here"


def exit_code_of(command: Callable[[], int], stopped: str = "stopped") -> int:
    """The exit code of a command: its own, 1 if its arguments or its data are wrong, 130 after Ctrl-C.

    Args:
        command: raises ValueError, OSError or jsonargparse's ArgumentError, whose messages are for the user.
        stopped: what is said after Ctrl-C.
    """
    try:
        return command()
    except (ValueError, OSError, argparse.ArgumentError) as error:
        sys.stderr.write(f"{redact(str(error))}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write(f"{stopped}\n")
        return STOPPED
