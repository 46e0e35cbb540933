"""How commands end, and the devices that they take."""

from __future__ import annotations

import argparse

import pytest
import torch

from inpaint_module.commands.devices import device_of
from inpaint_module.commands.exit_codes import GOES_ON, exit_code_of


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ValueError("expected this, got that"), 1, "expected this, got that\n"),
        (FileNotFoundError("no such file"), 1, "no such file\n"),
        (argparse.ArgumentError(None, "not an option"), 1, "not an option\n"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from here\n"),
    ],
)
def test_errors_are_told_in_a_line(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> int:
        raise error

    assert exit_code_of(fails, GOES_ON) == code
    assert capsys.readouterr().err == told


def test_a_commands_own_code_is_kept_and_a_bug_is_shown() -> None:
    assert exit_code_of(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        exit_code_of(lambda: 1 // 0)


def test_devices() -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device: expected auto, cpu or a GPU that is there, got 'cua': "):
        device_of("cua")
