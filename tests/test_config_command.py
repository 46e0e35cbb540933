"""The command lines that read configs: what they take, refuse and say, and LightningCLI's --config."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

import train
from inpaint_module.cli.config_option import changed_pieces
from inpaint_module.cli.parser import Parser

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
            "--config: expected a file, got nowhere.yaml; those that ship: configs/adamw8bit.yaml, configs/bf16",
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
    assert "max_steps: 500" in shown
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
    assert "config: expected a file, got configs/quickstat.yaml; those that ship: configs/adamw8bit.yaml" in shown
    assert "All options: python -m train fit --help" in shown
    assert "://" in printed(capsys, "--config=http://127.0.0.1:1/x.yaml")


# Callbacks and loggers, one by one

BEFORE = [{"class_path": "x.EMA", "init_args": {"decay": 0.9, "warmup": True}}, {"class_path": "x.ImageGrid"}]


@pytest.mark.parametrize(
    ("changes", "after"),
    [
        ({}, BEFORE),
        ({"EMA": None}, BEFORE[1:]),
        (
            {"ema": {"init_args": {"decay": 0.5}}},
            [{**BEFORE[0], "init_args": {"decay": 0.5, "warmup": True}}, BEFORE[1]],
        ),
        ({"EMA": {"class_path": "y.Other"}}, [{"class_path": "y.Other"}, BEFORE[1]]),
        (
            {"ImageGrid": None, "early": {"class_path": "x.Early", "init_args": {"monitor": "val/loss"}}},
            [BEFORE[0], {"class_path": "x.Early", "init_args": {"monitor": "val/loss"}}],
        ),
    ],
)
def test_pieces_are_changed_by_name(changes: dict[str, Any], after: list[dict[str, Any]]) -> None:
    assert changed_pieces(BEFORE, changes, "trainer.callbacks") == after
    assert BEFORE[0]["init_args"] == {"decay": 0.9, "warmup": True}


def test_pieces_that_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match=r"callbacks\.EMMA: expected one of EMA, ImageGrid, .* did you mean EMA\?"):
        changed_pieces(BEFORE, {"EMMA": None}, "trainer.callbacks")
    with pytest.raises(ValueError, match="expected the name of one entry, got that of 2; give the list"):
        changed_pieces(BEFORE * 2, {"EMA": None}, "trainer.callbacks")
    with pytest.raises(ValueError, match=r"EMA: expected null, init_args or a class_path, got 3"):
        changed_pieces(BEFORE, {"EMA": 3}, "trainer.callbacks")


def test_fit_changes_pieces_from_overlays_and_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    overlay = tmp_path / "over.yaml"
    csv = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "runs"}}
    trainer = {"callbacks": {"ema": None, "ValidationReport": {"init_args": {"photos": 2}}}, "logger": {"csv": csv}}
    overlay.write_text(yaml.safe_dump({"trainer": trainer}))
    name = tmp_path / "name.yaml"
    name.write_text("trainer: {logger: {init_args: {name: mine}}}\n")
    configs = [f"--config={path}" for path in (CONFIGS / "quickstart.yaml", overlay, name)]
    line = ["--trainer.callbacks.ImageGrid.rows=3", "--trainer.callbacks.Throughput", "null"]
    made = yaml.safe_load(printed(capsys, *configs, *line))["trainer"]
    classes = {each["class_path"].rpartition(".")[2]: each.get("init_args") for each in made["callbacks"]}
    assert list(classes) == [
        "ModelCheckpoint",
        "ImageGrid",
        *list(classes)[2:4],
        "ValidationReport",
        *list(classes)[5:7],
        "DataCounters",
    ]
    assert classes["ImageGrid"]["rows"] == 3
    assert classes["ValidationReport"]["photos"] == 2
    assert [each["init_args"]["name"] for each in made["logger"]] == ["mine", "lightning_logs"]
    assert "ImageGrid has no option 'rowz'" in printed(capsys, configs[0], "--trainer.callbacks.ImageGrid.rowz=3")
    appended = ["--trainer.callbacks+=inpaint_module.report.ValidationReport", "--trainer.callbacks.photos=3"]
    made = yaml.safe_load(printed(capsys, configs[0], *appended, "--trainer.callbacks.presets=[sd]"))["trainer"]
    assert made["callbacks"][-1]["init_args"]["photos"] == 3
