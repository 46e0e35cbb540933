"""What a run shows: one bar with the time left, on one line of 80 columns, and nothing that nobody can use."""

from __future__ import annotations

import logging
import math
import re
import warnings
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core import rank_zero
from torch import nn

from inpaint_module.cli import terminal
from inpaint_module.cli.terminal import RunProgress, quiet

UNUSED = (
    "TPU available: False, using: 0 TPU cores",
    "`weights_only` was not set, defaulting to `False`.",
    "Found current_model_state in the checkpoint. This will be used to initialize the model.",
)


def trainer(step: int, **settings: Any) -> Any:
    metrics = {"train/loss": torch.tensor(0.941), "throughput/images_per_s": 12.345, "val/psnr_inside": 12.04}
    state = SimpleNamespace(fn="fit")
    known = {
        "global_step": step,
        "max_steps": 1000,
        "callback_metrics": metrics,
        "state": state,
        "is_global_zero": True,
    }
    return SimpleNamespace(**{**known, "sanity_checking": False, "estimated_stepping_batches": math.inf, **settings})


def test_one_line_for_the_whole_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "_SECONDS", dict.fromkeys((True, False), -1.0))
    bar, model = RunProgress(), nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    bar._trainer = trainer(0)
    bar.on_train_start(trainer(400), model)  # type: ignore[arg-type]
    for epoch in range(2):
        bar.on_train_epoch_start(trainer(400 + epoch))
        bar.on_train_batch_start(trainer(400 + epoch), model, None, 0)
        bar.train_progress_bar.dynamic_ncols = lambda _: (80, 24)
        bar.on_train_batch_end(trainer(401 + epoch), model, None, None, 0)
        bar.on_train_epoch_end(trainer(401 + epoch), model)  # type: ignore[arg-type]
    bar.on_train_end()
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    states = [state.strip("\n") for state in shown.split("\r") if state.strip()]
    assert max(map(len, states)) <= 80
    assert re.match(r"step:? +40%\|.*\| 402/1000 \[00:00<\S+, loss 0\.941, 12\.3 images/s, PSNR 12\.0\]", states[-1])


def test_a_validation_is_told_in_the_one_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_SECONDS", dict.fromkeys((True, False), -1.0))
    bar, model = RunProgress(), nn.Linear(2, 2)
    now = trainer(400, num_val_batches=[3], validating=True)
    bar._trainer = now
    bar.on_train_start(now, model)
    bar.on_train_batch_start(now, model, None, 0)
    bar.train_progress_bar.dynamic_ncols = lambda _: (80, 24)
    bar.on_validation_start(now, model)
    for number in range(3):
        bar.on_validation_batch_start(now, model, None, number)
        bar.on_validation_batch_end(now, model, None, None, number)
    bar.on_validation_end(now, model)
    bar.on_train_end()
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    states = [state.strip("\n") for state in shown.split("\r") if state.strip()]
    assert [state.rpartition(", ")[2] for state in states[1:4]] == [f"validating {n}/3]" for n in (1, 2, 3)]
    assert states[-1].endswith("PSNR 12.0]")


def test_warnings_and_long_lines_are_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    with mock.patch.object(rank_zero.log, "filters", []), warnings.catch_warnings():
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
        quiet()
        assert warnings.formatwarning("no photos", UserWarning, "/some/file.py", 3, "rank_zero_warn(") == (
            "warning: no photos\n"
        )
    line = "learning rate: OneCycleLR has 1000 steps, trainer.max_steps is 30: it is cut off"
    assert terminal.in_width(f"{line}\n{line} then, at 0.1", 80).split("\n") == [
        line.removesuffix(" off"),
        "  off",
        line.removesuffix(" off"),
        "  off then, at 0.1",
    ]
    assert terminal.in_width("\nshort", 80) == "\nshort"


def test_the_number_of_steps() -> None:
    assert terminal._steps(trainer(0)) == 1000
    assert terminal._steps(trainer(0, max_steps=-1, estimated_stepping_batches=70.0)) == 70
    assert terminal._steps(trainer(0, max_steps=-1)) is None


def test_adverts_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with mock.patch.object(rank_zero.log, "filters", []), caplog.at_level(logging.INFO):
        quiet()
        quiet()
        assert len(rank_zero.log.filters) == 1
        for line in ("💡 Tip: buy this", "GPU available: False, used: False", *UNUSED, "GPU available: True"):
            rank_zero_info(line)
    assert [record.getMessage() for record in caplog.records] == ["GPU available: True"]
