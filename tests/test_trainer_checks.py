"""Trainers that would never end, or miscount the stream, are refused."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, Timer

from datamodules.stream_datamodule import check_batch, check_trainer

STOP = EarlyStopping("loss")


def trainer(**options: Any) -> Any:
    """What of a trainer is looked at, as Lightning sets it by default."""
    defaults = {"max_steps": -1, "max_epochs": -1, "limit_train_batches": 1.0, "accumulate_grad_batches": 1}
    return SimpleNamespace(**{**defaults, "callbacks": [], "optimizers": [object()], **options})


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 5},
        {"max_steps": 0},
        {"max_epochs": 2, "limit_train_batches": 3},
        {"max_epochs": None, "limit_train_batches": 3},
        {"callbacks": [Timer(timedelta(hours=1))]},
        {"callbacks": [STOP]},
        {"max_steps": 5, "limit_train_batches": 4, "accumulate_grad_batches": 2},
    ],
)
def test_accepted(options: dict[str, Any]) -> None:
    check_trainer(trainer(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"trainer\.max_steps: expected a number of optimizer steps, got -1 with max_epochs -1"),
        ({"limit_train_batches": 7}, r"trainer\.max_steps: expected .* limit_train_batches 7"),
        ({"max_epochs": 3}, r"trainer\.max_steps: expected .* max_epochs 3 and limit_train_batches 1.0"),
        (
            {"max_steps": 5, "callbacks": [GradientAccumulationScheduler({0: 2})]},
            r"trainer\.callbacks: expected no GradientAccumulationScheduler, got one",
        ),
        (
            {"max_steps": 5, "optimizers": [object(), object()]},
            r"model\.configure_optimizers: expected one optimizer, got 2",
        ),
        (
            {"max_steps": 5, "limit_train_batches": 3, "accumulate_grad_batches": 2},
            r"trainer\.limit_train_batches: expected a multiple of accumulate_grad_batches \(2\), got 3",
        ),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_trainer(trainer(**options))


def test_a_batch_that_cannot_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Four images of 2 x 5 pixels: 120 values of 1 byte, and twice of 4."""
    check_batch(4, 4, (2, 5), 1080)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"data.batch_size: expected a batch that fits .* got 4, .*max_batch"):
        check_batch(4, 4, (2, 5), 1079)


def test_a_batch_larger_than_the_data_set_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        check_batch(6, 4, (2, 5), 10**9)
    assert "data.batch_size: 6 samples are more than the 4 of data.train_shards: each comes 1.5 times" in caplog.text
