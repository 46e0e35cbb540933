"""The command lines that read configs: what they take, refuse and say, and LightningCLI's --config."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import train
from inpaint_module.commands.parser import Parser

CONFIGS = Path(__file__).parents[1] / "configs"


def command(**options: Any) -> Parser:
    parser = Parser("it", "inpaint_module.export", **{"parts": ("model", "data")} | options)
    parser.add_argument("out")
    return parser


def test_configs_and_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["there", "--config=configs/quickstart.yaml", "--config", "configs/lora.yaml", "--data.batch_size=2"]
    options, overrides = command().parse([*arguments, "--model.call", "null"])
    assert options.config == [CONFIGS / "quickstart.yaml", CONFIGS / "lora.yaml"]
    assert options.out == "there"
    assert overrides == ["--data.batch_size=2", "--model.call=null"]
    assert command(default="none").parse(["there"])[0].config == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out"], "the following arguments are required: --config\nAll options: inpaint it --help\n"),
        (
            ["out", "--config=nowhere.yaml"],
            "--config: expected a file, got nowhere.yaml; those that ship: configs/auto",
        ),
        (["out", "--config=configs/lora.yaml", "--dta.seed=3"], "there is no option --dta.seed\n"),
        (
            ["out", "--config=configs/lora.yaml", "--data.seed"],
            "--data.seed: expected a value, such as --data.batch_s",
        ),
        (["out", "--conf=configs/lora.yaml"], "there is no option --conf; did you mean --config?"),
    ],
)
def test_mistakes_end_with_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command().parse(arguments)
    assert message in capsys.readouterr().err


def test_help_says_what_may_be_overridden() -> None:
    assert "--model.sampling_steps=4 and --data.batch_size=2 override" in command().format_help()
    model = command(parts=("model",), default="the one that ships").format_help()
    assert "--data." not in model
    assert "(default: the one that ships)" in " ".join(model.split())


# LightningCLI's own


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with (
        mock.patch.object(sys, "argv", ["train.py", "fit", *arguments, "--print_config"]),
        pytest.raises(SystemExit) as end,
    ):
        train.main()
    shown = capsys.readouterr()
    return shown.out if end.value.code == 0 else shown.err


def test_fit_takes_configs_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls its old names
    monkeypatch.chdir(tmp_path)
    with mock.patch("inpaint_module.cli.config_option.rank_zero_info") as told:
        shown = printed(capsys, "--config=configs/quickstart.yaml", "-c", "configs/latent_cache.yaml")
    assert "train_shards: runs/latents" in shown
    assert "max_steps: 1000" in shown
    assert told.call_args_list[0].args[0].endswith(f"the one that ships: {CONFIGS / 'quickstart.yaml'}")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text("trainer: {max_steps: 7}\n")
    with mock.patch("inpaint_module.cli.config_option.rank_zero_info") as told:
        assert "max_steps: 7" in printed(capsys, "--config", "configs/quickstart.yaml")
    told.assert_not_called()
    assert "max_steps: 8" in printed(capsys, "--config", "trainer: {max_steps: 8}")
    (tmp_path / "odd[.yaml").write_text("trainer: {max_steps: 9}\n")
    assert "max_steps: 9" in printed(capsys, "--config", "odd[.yaml")


def test_fit_says_which_configs_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.chdir(tmp_path)
    shown = printed(capsys, "--config=configs/quickstat.yaml")
    assert "config: expected a file, got configs/quickstat.yaml; those that ship: configs/autoencoder.yaml" in shown
    assert "All options: python -m train fit --help" in shown
    assert "://" in printed(capsys, "--config=http://127.0.0.1:1/x.yaml")
