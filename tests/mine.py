"""A pickle that says whether anybody has run it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Mine:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.folder,)
