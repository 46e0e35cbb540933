"""Bad share: too many bad samples are not an accident, and end the run."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path

_RECENT = 10_000
_AT_LEAST = 1_000  # a share of fewer says little: the first bad sample of a run is not 100 %
_REASONS = 3

_log = logging.getLogger(__name__)


class BadShareLimit:
    """Counts the bad samples among the last 10,000 of this process, and raises above a share.

    Fewer samples count as 1,000, so that a limit of .01 needs 11 bad ones, be they the first 11.

    Args:
        max_share: the limit, 0..1.
        path: the quarantine file, for messages.
    """

    def __init__(self, max_share: float, *, path: Path | None = None) -> None:
        self.max_share = max_share
        self.where = f"{path} names all" if path else "no file, since there is no run folder"
        self.samples = self.bad = 0
        self._batches: deque[tuple[int, int]] = deque()
        self._reasons: deque[str] = deque(maxlen=_REASONS)
        self._told = False

    def __call__(self, bad: Sequence[str], samples: int) -> None:
        """Count a batch: the reasons of its bad samples, and its size. The first bad one is told of.

        Raises:
            ValueError: naming share, limit, file and the last reasons.
        """
        self._batches.append((samples, len(bad)))
        self.samples, self.bad = self.samples + samples, self.bad + len(bad)
        while self.samples - self._batches[0][0] >= _RECENT:
            old = self._batches.popleft()
            self.samples, self.bad = self.samples - old[0], self.bad - old[1]
        if bad:
            self._reasons.extend(bad)
            self._check()

    def _check(self) -> None:
        if not self._told:
            self._told = True
            _log.warning("substituted a bad sample: %s (%s)", self._reasons[-1], self.where)
        if self.bad > self.max_share * max(self.samples, _AT_LEAST):
            raise ValueError(
                f"data.max_bad_share: expected at most {self.max_share:.2%} bad samples, got {self.bad} among the "
                f"last {self.samples} ({self.where}); the last: {'; '.join(self._reasons)}"
            )
