"""Tests compute on one thread, as do the processes they start: on models this small, threads wait for each other."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is first imported

LONGEST = (  # files, the longest first: begun last, one of them would keep a single core busy at the end
    *("test_distributed", "test_resume", "test_train", "test_second_start", "test_training_state", "test_base_models"),
    *("test_doctor", "test_latent_cache_training", "test_recipes", "test_run_record", "test_validation_report"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, everything else in its order."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2`, a file is one process's: two would each make what its tests share, and that is most of the work."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)
