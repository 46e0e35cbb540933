"""Kill matrix: SIGKILL of all processes of a run at 11 named points and 20 random moments, per setup.

And inside the writing of each other file of a run: at half of it, and before and after it takes its place. What each
batch was and gave, and all that training made, must equal an uninterrupted run's to the bit, and no kill may damage a
checkpoint, keep the same command from going on, or leave other files than the uninterrupted run's. Run with
`pytest -m slow tests/test_kill_matrix.py`.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import pytest
from run_records import Starts, assert_ended_as_told, assert_same_run, ends, run_cases, starts, steps
from tiny_run import Setup

NAMED = [
    ["batch@1", "save:epoch@4", "before:last@6", "validated@8"],
    ["optimizer@1", "before:epoch@2", "validation@4", "after:last@6"],
    ["backward@3", "after:epoch@4", "save:last@6"],
]
SETUPS = {
    "workers": Setup(workers=2),
    "ddp": Setup(ranks=2),
    "accumulation": Setup(window=3),
    "tmpdir": Setup(tmpdir="/dev/shm"),
    "ema": Setup(ema=True),
    "buckets": Setup(data={"order": {"bucket_step": 16}}),
}
MOMENTS = 20


def around(name: str, step: int) -> list[str]:
    """Kills in the writing of a file at a step, each in a start of its own."""
    return [f"{point}:{name}@{step}" for point in ("write", "before", "after")]


FILES = {  # that a start writes, and goes on from the checkpoint of step 2; that a validation writes, and the end
    "record": [*around("run.json", 0), "batch@3", *around("run.json", 2)],
    "metrics": [*around("metrics.csv", 0), "append:metrics.csv@1", "append:metrics.csv@4", *around("metrics.csv", 2)],
    "config": [*around("config.yaml", 0), "batch@3", *around("config.yaml", 2)],
    "grids": [*around("step_000002.png", 2), "append:metrics.csv@2", *around("step_000008.png", 8)],
    "report": [*around("sd.png", 8), *around("report.json", 8), *around("report.html", 8)],
}


def moments(seed: int) -> list[list[str]]:
    """Twenty random moments, four to a run: after so many batches or validations of a start, and up to 0.15 s more."""
    chance = random.Random(seed)
    kills = [f"moment:{chance.randrange(6)}+{chance.uniform(0, 0.15):.4f}" for _ in range(MOMENTS)]
    return [kills[number : number + 4] for number in range(0, MOMENTS, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_killed_runs_equal_one_that_was_not(name: str, tmp_path: Path) -> None:
    setup = SETUPS[name]
    if setup.tmpdir and os.stat(setup.tmpdir).st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{setup.tmpdir} is on the same file system as {tempfile.gettempdir()}")
    seed = list(SETUPS).index(name)
    runs: dict[str, Starts] = {str(number): starts(*kills) for number, kills in enumerate([*NAMED, *moments(seed)])}
    run_cases(tmp_path, {"whole": (setup, starts()), **{run: (setup, each) for run, each in runs.items()}})
    for run in runs:
        assert_ended_as_told(tmp_path / run)
        assert_same_run(tmp_path / run, tmp_path / "whole", setup)
    shapes = {tuple(line["shape"]) for line in steps(tmp_path / "whole").values() if "shape" in line}
    assert (len(shapes) > 1) == ("bucket_step" in setup.data)
    killed = [-9 in end["statuses"] for run in runs for end in ends(tmp_path / run) if end["kill"]]
    print(f"{name}: {sum(killed)} of {len(killed)} kills came before the end")  # noqa: T201
    assert sum(killed) >= len(killed) - 3


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_kills_inside_the_writing_of_a_run_s_files(name: str, tmp_path: Path) -> None:
    setup = Setup(record=True)
    run_cases(tmp_path, {"whole": (setup, starts()), "killed": (setup, starts(*FILES[name]))})
    assert_ended_as_told(tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole", setup)
