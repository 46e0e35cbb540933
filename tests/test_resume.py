"""Killed runs: the same command again ends with the bits of a run that was never killed."""

from __future__ import annotations

import itertools
import os
import random
import signal
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
from run_records import ROOT, assert_ended_as_told, assert_same_run, finish, launch, printed, run_cases, starts, steps
from tiny_models import tiny_module
from tiny_run import Setup, tiny_config

from inpaint_module.cli.training import ResumingCLI
from inpaint_module.training.checkpoints import VerifiedCheckpointIO
from inpaint_module.training.resume import ExactResume, checkpoint_folders, resume_line

PLAIN, EPOCHS, VALIDATIONS = Setup(), Setup(saves="epochs"), Setup(saves="validations")
RECORDED = Setup(record=True)
KILLS = (  # the others: test_kill_matrix.py
    *("write:run.json@0", "append:metrics.csv@4", "backward@5", "save:epoch@6"),  # half a file, in a window
    *("before:last@6", "flip"),  # between two files; the newer is damaged then
)


def killed_after(lines: int, folder: Path) -> None:
    """Run the command until its log has so many lines, and kill its processes a random moment later."""
    process = launch(str(ROOT / "train.py"), "fit", "--config", "config.yaml", folder=folder)
    log = folder / "steps0.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < lines):
        time.sleep(0.005)
    time.sleep(random.Random(lines).uniform(0, 0.1))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_runs_end_as_one_that_was_not(tmp_path: Path) -> None:
    run_cases(tmp_path, {"whole": (RECORDED, starts()), "killed": (RECORDED, starts(*KILLS))})
    assert_ended_as_told(tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole", RECORDED)
    assert "resume: no checkpoint yet, starting from scratch" in printed(tmp_path / "whole")
    assert "epoch=0-step=6.ckpt: expected sha256" in printed(tmp_path / "killed")
    assert len(steps(tmp_path / "whole")) == 16 + 4  # batches and validations


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    run_cases(tmp_path, {"whole": (PLAIN, starts())})
    folder = tmp_path / "real"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny_config(PLAIN)))
    killed_after(7, folder)
    process = launch(str(ROOT / "train.py"), "fit", "--config", "config.yaml", folder=folder)
    assert "resume: going on from" in finish(process)
    assert_same_run(folder, tmp_path / "whole", PLAIN)


@pytest.mark.slow
def test_other_workers_and_other_moments_of_saving(tmp_path: Path) -> None:
    workers = [("batch@3", {}), ("backward@5", {"workers": 3}), ("", {"workers": 1})]
    cases = {
        "whole": (PLAIN, starts()),
        "workers": (PLAIN, workers),
        "averaged": (Setup(ema=True), starts()),
        "last": (Setup(ema=True), starts("validation@8")),  # in the last validation, when all is trained
        "epochs": (EPOCHS, starts()),
        "epoch": (EPOCHS, starts("after:last@6", "validated@8")),
        "next": (EPOCHS, starts("batch@7")),  # goes on from an epoch's end
        "validations": (VALIDATIONS, starts()),
        "validation": (VALIDATIONS, starts("batch@5", "after:epoch@6", "after:last@8")),
    }
    run_cases(tmp_path, cases)
    wholes = {"workers": "whole", "last": "averaged", "epoch": "epochs", "next": "epochs", "validation": "validations"}
    for name, whole in wholes.items():
        assert_ended_as_told(tmp_path / name)
        assert_same_run(tmp_path / name, tmp_path / whole, cases[name][0])
    assert "is at step 8 of 8; raise trainer.max_steps" in printed(tmp_path / "last")
    assert "epoch=0-step=6.ckpt at step 6" in printed(tmp_path / "next").replace("last", "epoch=0-step=6")


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
    drawn, module = set(), tiny_module()
    for seed, step, batch, rank in itertools.product(*[range(2)] * 4):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        trainer: Any = SimpleNamespace(global_step=step, global_rank=rank, accumulate_grad_batches=2)
        for epoch in range(2):  # the same in every epoch's batches, whose number is not the window's
            with torch.random.fork_rng([]):
                ExactResume().on_train_batch_start(trainer, module, None, batch + 4 * epoch)
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
