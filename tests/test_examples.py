"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT / "inpaint_module", ROOT / "datamodules"]
SOURCES = [path for package in PACKAGES for path in package.rglob("*.py") if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", sorted(SOURCES), ids=lambda path: path.stem)
def test_examples(path: Path) -> None:
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_there_are_examples() -> None:
    assert len(SOURCES) >= 8
