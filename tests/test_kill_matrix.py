"""Kill matrix: SIGKILL of all processes of a run, at named points and random moments, in six set-ups.

And inside the writing of each other file of a run: at half of it, and before and after it takes its place. What each
batch was and gave, and all that training made, must equal an uninterrupted run's to the bit, and no kill may damage a
checkpoint, keep the same command from going on, or leave other files than the uninterrupted run's. Run with
`pytest -m slow tests/test_kill_matrix.py`.
"""

from __future__ import annotations

import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from run_records import Starts, assert_ended_as_told, assert_same_run, ends, run_cases, starts, steps
from tiny_run import Setup


@dataclass(frozen=True)
class Case:
    """A set-up, and where its runs are killed: a list of points for each run, and random moments."""

    setup: Setup
    runs: list[list[str]]
    moments: int


EVERYWHERE = [
    ["batch@1", "save:epoch@4", "before:last@6", "validated@8"],
    ["optimizer@1", "before:epoch@2", "validation@4", "after:last@6"],
    ["backward@3", "after:epoch@4", "save:last@6"],
]
IN_THE_LOOP = [["batch@1", "backward@3", "optimizer@5", "validated@8"]]
CASES = {  # what the set-up changes is killed; the rest is the first two's
    "workers": Case(Setup(workers=2), EVERYWHERE, 8),
    "ddp": Case(Setup(ranks=2), EVERYWHERE, 8),
    "accumulation": Case(Setup(window=3), IN_THE_LOOP, 8),
    "tmpdir": Case(Setup(tmpdir="/dev/shm"), [["before:epoch@2", "save:epoch@4", "after:epoch@4", "save:last@6"]], 4),
    "ema": Case(Setup(ema=True), [["batch@1", "save:epoch@4", "validation@4", "before:last@6", "validated@8"]], 8),
    "buckets": Case(Setup(data={"order": {"bucket_step": 16}}), IN_THE_LOOP, 8),
}


def around(name: str, step: int) -> list[str]:
    """Kills in the writing of a file at a step, each in a start of its own."""
    return [f"{point}:{name}@{step}" for point in ("write", "before", "after")]


RECORDED = Setup(record=True)
FILES = {  # that a start writes, and goes on from the checkpoint of step 2; that a validation writes, and the end
    "record": [*around("run.json", 0), "batch@3", *around("run.json", 2)],
    "metrics": [*around("metrics.csv", 0), "append:metrics.csv@1", "append:metrics.csv@4", *around("metrics.csv", 2)],
    "config": [*around("config.yaml", 0), "batch@3", *around("config.yaml", 2)],
    "grids": [*around("step_000002.png", 2), "append:metrics.csv@2", *around("step_000008.png", 8)],
    "report": [*around("sd.png", 8), *around("report.json", 8), *around("report.html", 8)],
}


def moments(seed: int, count: int) -> list[list[str]]:
    """Random moments, four to a run: after so many batches or validations of a start, and up to 0.15 s more."""
    chance = random.Random(seed)
    kills = [f"moment:{chance.randrange(6)}+{chance.uniform(0, 0.15):.4f}" for _ in range(count)]
    return [kills[number : number + 4] for number in range(0, count, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_killed_runs_equal_one_that_was_not(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    setup = case.setup
    if setup.tmpdir and os.stat(setup.tmpdir).st_dev == tmp_path.stat().st_dev:
        pytest.skip(f"{setup.tmpdir} is on the same file system as {tempfile.gettempdir()}")
    kills = [*case.runs, *moments(list(CASES).index(name), case.moments)]
    runs: dict[str, Starts] = {str(number): starts(*each) for number, each in enumerate(kills)}
    run_cases(tmp_path, {"whole": (setup, starts()), **{run: (setup, each) for run, each in runs.items()}})
    for run in runs:
        assert_ended_as_told(tmp_path / run)
        assert_same_run(tmp_path / run, tmp_path / "whole", setup)
    shapes = {tuple(line["shape"]) for line in steps(tmp_path / "whole").values() if "shape" in line}
    assert (len(shapes) > 1) == (name == "buckets")
    killed = [-9 in end["statuses"] for run in runs for end in ends(tmp_path / run) if end["kill"]]
    print(f"{name}: {sum(killed)} of {len(killed)} kills came before the end")  # noqa: T201
    assert sum(killed) >= len(killed) - 3


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that writes into a run folder, not killed."""
    folder = tmp_path_factory.mktemp("recorded")
    run_cases(folder, {"whole": (RECORDED, starts())})
    return folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_kills_inside_the_writing_of_a_run_s_files(name: str, recorded: Path, tmp_path: Path) -> None:
    run_cases(tmp_path, {"killed": (RECORDED, starts(*FILES[name]))})
    assert_ended_as_told(tmp_path / "killed")
    assert_same_run(tmp_path / "killed", recorded, RECORDED)
