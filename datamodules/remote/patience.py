"""Patience: when a transfer that breaks is tried again, and when it is given up."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from datamodules.remote.transports import RemoteError

_LOG = logging.getLogger(__name__)
_LONGEST_PAUSE = 30.0
_WRONG_FILES = 3  # how often a file may come whole and wrong


class Patience(NamedTuple):
    """When a transfer is given up.

    `attempts` failures without a new byte, between them pauses of `backoff`, 2, 4 ... times `backoff` seconds, at
    most 30; `stall_seconds` without bytes is a failure.
    """

    stall_seconds: float = 30.0
    attempts: int = 8
    backoff: float = 1.0


class WrongContentError(OSError):
    """A file has come whole, and it is another than expected."""


class Tries:
    """Counts failures and waits between them.

    Args:
        patience: how often, and how long.
    """

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.failures = 0
        self.wrong = 0

    @property
    def most_wrong(self) -> int:
        """So many times whole and wrong is the end."""
        return min(_WRONG_FILES, self.patience.attempts)

    def forget(self) -> None:
        """There is a new byte: failures count from here on."""
        self.failures = 0

    def failed(self, error: OSError) -> None:
        """Wait for the next try, or raise RemoteError if there is none."""
        self.failures += 1
        if isinstance(error, WrongContentError):
            self.wrong += 1
            if self.wrong == self.most_wrong:
                raise RemoteError(f"{error}, {self.wrong} times") from error
        elif self.failures >= self.patience.attempts:
            raise RemoteError(f"given up after {self.failures} failures: {error}") from error
        pause = min(self.patience.backoff * 2 ** (self.failures - 1), _LONGEST_PAUSE)
        _LOG.warning("%s; trying again in %.3g s", error, pause)
        time.sleep(pause)
