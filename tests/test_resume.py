"""Killed runs: the same command again ends with the bits of a run that was never killed."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from resumed_runs import LOG, tiny_config
from tiny_models import tiny_module
from torch import Tensor

from inpaint_module.checkpoint_io import VerifiedCheckpointIO
from inpaint_module.cli import ResumingCLI, checkpoint_folders, resume_line
from inpaint_module.resume import ExactResume

ROOT = Path(__file__).parents[1]
POINTS = ["batch", "backward", "optimizer", "validation"]
SAVES = [f"{point}:{name}" for point in ("save", "before", "after") for name in ("epoch", "last")]
CASES = [
    ["batch@5", "backward@5", "save:epoch@6", ""],  # twice inside an accumulation window; half a file
    [
        "validation@4",
        "before:last@6",
        "flip",
        "",
    ],  # in a validation; between two files, the newer of which is damaged then
    ["validation@8", ""],  # in the last validation, when all is trained
]


def launch(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    """A Python process on the CPU, in the folder."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def run_cases(folder: Path, cases: list[list[str]]) -> str:
    """All cases in one process after the other; what they printed."""
    script = str(ROOT / "tests" / "resumed_runs.py")
    process = launch(script, str(folder / "runs"), json.dumps(cases), folder=folder)
    printed = process.communicate(timeout=3000)[1]
    assert process.returncode == 0, printed
    return printed


def steps(folder: Path) -> dict[str, dict[str, Any]]:
    """The log, in which what was done twice must have given the same twice."""
    found: dict[str, dict[str, Any]] = {}
    for line in map(json.loads, (folder / LOG).read_text().splitlines()):
        name = f"validation {line['validation']}" if "validation" in line else f"batch {line['batch']}"
        assert found.setdefault(name, line) == line
    return found


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


def final(folder: Path) -> dict[str, Any]:
    """What training made of the run: weights, optimizer, schedule, position."""
    checkpoint = VerifiedCheckpointIO().load_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert "hyper_parameters" not in checkpoint
    names = ["state_dict", "optimizer_states", "lr_schedulers", "WebDatasetDataModule", "global_step", "epoch"]
    return {name: checkpoint[name] for name in names}


def assert_same_run(folder: Path, whole: Path) -> None:
    assert steps(folder) == steps(whole)
    assert_same_bits(final(folder), final(whole))
    files = [sorted(path.name for path in (each / "checkpoints").iterdir()) for each in (folder, whole)]
    assert {"last.ckpt", "epoch=1-step=8.ckpt"} <= set(files[0])
    assert not [name for name in files[0] if "-v" in name]


def finish(folder: Path) -> str:
    """Run the command to its end; what it printed."""
    process = launch(str(ROOT / "train.py"), "fit", "--config", "config.yaml", folder=folder)
    printed = process.communicate(timeout=300)[1]
    assert process.returncode == 0, printed
    return printed


def killed_after(lines: int, folder: Path) -> None:
    """Run the command until its log has so many lines, and kill it a random moment later."""
    process = launch(str(ROOT / "train.py"), "fit", "--config", "config.yaml", folder=folder)
    log = folder / LOG
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < lines):
        time.sleep(0.002)
    time.sleep(random.Random(lines).uniform(0, 0.1))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_runs_end_as_one_that_was_not(tmp_path: Path) -> None:
    printed = run_cases(tmp_path, [[""], *CASES])
    for number in range(1, len(CASES) + 1):
        assert_same_run(tmp_path / "runs" / str(number), tmp_path / "runs" / "0")
    assert "resume: no checkpoint yet, starting from scratch" in printed
    assert "epoch=0-step=6.ckpt: expected sha256" in printed
    assert "is at step 8 of 8; raise trainer.max_steps" in printed
    whole = steps(tmp_path / "runs" / "0")
    assert len(whole) == 16 + 4  # batches and validations
    folder = tmp_path / "runs" / "real"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny_config()))
    killed_after(7, folder)
    assert "resume: going on from" in finish(folder)
    assert_same_run(folder, tmp_path / "runs" / "0")


@pytest.mark.slow
def test_every_kill_point_and_other_workers(tmp_path: Path) -> None:
    chance = random.Random(0)
    kills = [f"{point}@{step}" for point in POINTS[:-1] for step in (1, 3, 4, 7)]
    kills += [f"validation@{step}" for step in (2, 4, 6, 8)]
    kills += [f"{point}@{step}" for point in SAVES for step in (2, 4, 6)]
    pairs = [sorted(chance.sample(kills, 2), key=lambda kill: kill.split("@")[1]) for _ in range(10)]
    pairs = [pair for pair in pairs if pair[0].split("@")[1] < pair[1].split("@")[1]]
    workers = [["batch@3/0", "backward@5/3", "/1"], ["save:last@4/2", "validation@6/0", "/2"]]
    cases = [[""], *CASES, *([kill, ""] for kill in kills), *([*pair, ""] for pair in pairs), *workers]
    run_cases(tmp_path, cases)
    for number in range(1, len(cases)):
        assert_same_run(tmp_path / "runs" / str(number), tmp_path / "runs" / "0")


@pytest.mark.parametrize("options", [{"train_time_interval": timedelta(minutes=1)}, {"save_on_exception": True}])
def test_saving_inside_an_accumulation_window_is_refused(options: dict[str, Any]) -> None:
    for window in (1, 2):
        callback = ModelCheckpoint(**options)
        trainer = Trainer(accelerator="cpu", accumulate_grad_batches=window, callbacks=[callback], logger=False)
        if window == 1:
            ExactResume().setup(trainer, tiny_module(), "fit")
        else:
            with pytest.raises(ValueError, match="expected ModelCheckpoint with every_n_train_steps"):
                ExactResume().setup(trainer, tiny_module(), "fit")


def test_resuming_inside_an_accumulation_window_is_refused() -> None:
    progress = {"current": {"processed": 6}}
    checkpoint = {"loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}
    trainer: Any = SimpleNamespace(training=True, accumulate_grad_batches=3)
    ExactResume().on_load_checkpoint(trainer, tiny_module(), checkpoint)
    trainer.accumulate_grad_batches = 4
    with pytest.raises(ValueError, match="expected a divisor of the checkpoint's 6 batches, got 4"):
        ExactResume().on_load_checkpoint(trainer, tiny_module(), checkpoint)


def test_random_numbers_depend_on_step_batch_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = set()
    for seed, step, batch, rank in itertools.product(*[range(2)] * 4):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        trainer: Any = SimpleNamespace(global_step=step, global_rank=rank, accumulate_grad_batches=2)
        for epoch in range(2):  # the same in every epoch's batches, whose number is not the window's
            with torch.random.fork_rng([]):
                ExactResume().on_train_batch_start(trainer, tiny_module(), None, batch + 4 * epoch)
                drawn.add(torch.rand(()).item())
    assert len(drawn) == 16


def test_hyperparameters_of_a_checkpoint_do_not_replace_the_command_line(tmp_path: Path) -> None:
    VerifiedCheckpointIO().save_checkpoint({"hyper_parameters": {"seed": 1}}, tmp_path / "a.ckpt")
    cli: Any = ResumingCLI.__new__(ResumingCLI)
    cli.config = {"subcommand": "fit", "fit": {"ckpt_path": str(tmp_path / "a.ckpt"), "model": {"seed": 2}}}
    cli._parse_ckpt_path()
    assert cli.config["fit"]["model"] == {"seed": 2}


def test_folders_are_those_of_whole_checkpoints(tmp_path: Path) -> None:
    callbacks = [
        ModelCheckpoint(dirpath=tmp_path / "a"),
        ModelCheckpoint(dirpath=tmp_path / "b", save_weights_only=True, monitor="val/x"),
        ModelCheckpoint(monitor="val/y"),
    ]
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=callbacks, default_root_dir=tmp_path / "c")
    assert checkpoint_folders(trainer) == [tmp_path / "a", tmp_path / "c" / "checkpoints"]


@pytest.mark.parametrize(("max_steps", "line"), [(7, "finished"), (8, "going on"), (-1, "going on")])
def test_resume_line(max_steps: int, line: str, tmp_path: Path) -> None:
    VerifiedCheckpointIO().save_checkpoint({"global_step": 7}, tmp_path / "a.ckpt")
    assert resume_line(tmp_path / "a.ckpt", max_steps).startswith(f"resume: {line}")
