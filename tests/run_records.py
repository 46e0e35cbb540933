"""Starts tiny runs in a process of their own, and compares what they left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tiny_run import Setup
from torch import Tensor

from inpaint_module.training.checkpoints import VerifiedCheckpointIO
from inpaint_module.training.run_folder import CONFIG, METRICS, RECORD, REPORT, read_metrics, read_record

ROOT = Path(__file__).parents[1]
Starts = list[tuple[str, dict[str, Any]]]
STATES = ["state_dict", "optimizer_states", "lr_schedulers", "WebDatasetDataModule", "global_step", "epoch"]
EMA_STATES = ["current_model_state", "averaging_state"]


def launch(*arguments: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """A Python process on the CPU, in the folder, and in a process group of its own."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment |= {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 300) -> str:
    """What it printed until it ended well; a process that hangs is killed, with its group."""
    try:
        said = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0]
    assert process.returncode == 0, said
    return said


def starts(*kills: str, **changes: Any) -> Starts:
    """One start per kill, and one that runs to the end."""
    return [(kill, changes) for kill in (*kills, "")]


def run_cases(folder: Path, cases: dict[str, tuple[Setup, Starts]]) -> None:
    """Run all of them, one after the other, in folders of their names."""
    path = folder / "cases.json"
    path.write_text(json.dumps({name: [asdict(setup), starts] for name, (setup, starts) in cases.items()}))
    finish(launch(str(ROOT / "tests" / "resumed_runs.py"), str(folder), str(path), folder=folder), 3000)


def ends(folder: Path) -> list[dict[str, Any]]:
    """How each start ended."""
    return [json.loads(line) for line in (folder / "ends.jsonl").read_text().splitlines()]


def printed(folder: Path, rank: int = 0) -> str:
    """All that a rank has printed."""
    return (folder / f"printed{rank}.txt").read_text()


def assert_ended_as_told(folder: Path) -> None:
    """Killed where a kill was asked for, else well; and no kill has damaged a checkpoint."""
    for end in ends(folder):
        allowed = {0} if not end["kill"] else {-9, 0} if end["kill"].startswith("moment") else {-9}
        assert set(end["statuses"]) <= allowed, (end, printed(folder)[-3000:])
        assert end["damaged"] == []


def steps(folder: Path, rank: int = 0) -> dict[str, dict[str, Any]]:
    """A rank's log, in which what was done twice must have given the same twice."""
    found: dict[str, dict[str, Any]] = {}
    for line in map(json.loads, (folder / f"steps{rank}.jsonl").read_text().splitlines()):
        name = f"validation {line['validation']}" if "validation" in line else f"batch {line['batch']}"
        assert found.setdefault(name, line) == line
    return found


def keys_per_step(folder: Path, setup: Setup) -> dict[int, list[str]]:
    """The sorted keys that all ranks together used for each optimizer step, at the last time that they did it."""
    keys: dict[int, dict[tuple[int, int], dict[int, list[str]]]] = {}  # step, (rank, batch), world
    worlds: dict[int, int] = {}
    for rank in range(setup.ranks):
        for line in map(json.loads, (folder / f"steps{rank}.jsonl").read_text().splitlines()):
            if "batch" in line:
                step = line["batch"] // setup.window
                keys.setdefault(step, {}).setdefault((rank, line["batch"]), {})[line["world"]] = line["keys"]
                worlds[step] = line["world"] if rank == 0 else worlds[step]
    return {
        step: sorted(key for each in batches.values() for key in each.get(worlds[step], []))
        for step, batches in keys.items()
    }


def assert_same_bits(found: Any, expected: Any) -> None:
    """Equal structures of equal values, tensors to the bit."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert found.numpy().tobytes() == expected.numpy().tobytes()
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same_bits(found[name], expected[name])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same_bits(*pair)
    else:
        assert found == expected


def final(folder: Path, setup: Setup) -> dict[str, Any]:
    """What training made of the run: weights, their average, optimizer, schedule, position."""
    checkpoint = VerifiedCheckpointIO().load_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert "hyper_parameters" not in checkpoint
    assert checkpoint["optimizer_states"][0]["state"], "an optimizer with nothing in it proves nothing"
    return {name: checkpoint[name] for name in STATES + EMA_STATES * setup.ema}


def assert_same_run(folder: Path, whole: Path, setup: Setup) -> None:
    """Equal losses, keys and metrics on every rank, equal states at the end, and no checkpoint beside the usual."""
    for rank in range(setup.ranks):
        assert steps(folder, rank) == steps(whole, rank)
    assert_same_bits(final(folder, setup), final(whole, setup))
    for name in ("checkpoints", *(("grids", "report") * setup.record)):
        assert names(folder / name) == names(whole / name)
    if setup.record:
        assert_same_record(folder, whole)


def names(folder: Path) -> list[str]:
    """Of all files in a folder."""
    return sorted(path.name for path in folder.iterdir())


def assert_same_record(folder: Path, whole: Path) -> None:
    """Whole files, equal but for what they say of times."""
    assert sorted(read_metrics(folder / METRICS)) == sorted(read_metrics(whole / METRICS))
    assert {name for name in names(folder) if "." in name} == {name for name in names(whole) if "." in name}
    for name in (CONFIG, REPORT, *(f"grids/{name}" for name in names(whole / "grids"))):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    found, expected = read_record(folder / RECORD), read_record(whole / RECORD)
    differing = {name for name in expected if found[name] != expected[name]}
    assert differing <= {"command", "starts", "data"}  # the folder; where each start was, and since when
    assert [start["step"] for start in expected["starts"]] == [0]
    for page in ((folder / "report.html").read_text(), (whole / "report.html").read_text()):
        assert page.endswith("</html>\n")
