"""The names of the package, which are imported when they are asked for."""

from __future__ import annotations

import pytest

import datamodules


def test_names_come_when_asked_for() -> None:
    assert {getattr(datamodules, name).__name__ for name in datamodules.__all__} == set(datamodules.__all__)
    with pytest.raises(AttributeError, match="module 'datamodules' has no attribute 'Nothing'"):
        datamodules.Nothing  # noqa: B018
