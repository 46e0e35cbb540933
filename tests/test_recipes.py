"""configs/README.md: every recipe parses over the quickstart, and those for one process train together."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from test_train import QUICK

import train
from inpaint_module.cli import COMMANDS, options

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "configs" / "README.md").read_text()
RECIPES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
LINES = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),  # Lightning 2.6 on torch's newest pytree
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


def argv(line: str) -> list[str]:
    """What comes after `inpaint`; an overlay of the reader's is the first recipe."""
    words = shlex.split(line, comments=True)
    return [word.replace("mine.yaml", "recipe0.yaml") for word in words[words.index("inpaint") + 1 :]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls its old names
    monkeypatch.setenv("WANDB_MODE", "offline")
    for number, recipe in enumerate(RECIPES):
        Path(f"recipe{number}.yaml").write_text(recipe)
        if "WandbLogger" in recipe:
            Path("wandb.yaml").write_text(recipe)
    return tmp_path


def config_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with mock.patch.object(sys, "argv", ["train", *arguments, "--print_config"]), pytest.raises(SystemExit, match="0"):
        train.main()
    return yaml.safe_load(capsys.readouterr().out)


def test_every_command_is_marked_or_parses(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in LINES if not line.endswith(("# GPU", "# network"))]
    assert len(lines) >= 7
    for line in lines:
        arguments = argv(line)
        if arguments[0] == "fit":
            config_of(capsys, *(word for word in arguments if word not in ("--print_config", "--estimate")))
        else:
            words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
            command = COMMANDS[" ".join(arguments[:words])]
            getattr(options, command.options)().parse(arguments[words:])


def test_overlays_are_thin_and_in_the_table() -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"`{path.name}`" in TEXT


def test_recipes_train_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlays = [f"--config=recipe{number}.yaml" for number, each in enumerate(RECIPES) if "Wandb" not in each]
    assert len(overlays) == len(RECIPES) - 1
    more = ["--trainer.callbacks.ModelCheckpoint.every_n_train_steps=1", "--trainer.accumulate_grad_batches=2"]
    more += ["--trainer.callbacks.ValidationReport=null", "--data.val_batch_size=2", "--trainer.limit_val_batches=1"]
    with mock.patch.object(sys, "argv", ["train", "fit", "--config=configs/quickstart.yaml", *overlays, *QUICK, *more]):
        assert train.main() == 0
    run = folder / "runs" / "quickstart"
    assert (run / "samples" / "over_time.png").exists()
    assert len(list((run / "checkpoints").glob("*.ckpt"))) == 3, "both steps are kept, and the last"
    assert list((folder / "runs" / "table").rglob("*metrics.csv")), "the second logger's table"
    callbacks = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    classes = [each["class_path"].rpartition(".")[2] for each in callbacks]
    assert "EMA" not in classes
    assert {"EarlyStopping", "LearningRateMonitor"} <= set(classes)


def test_weights_and_biases(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = config_of(capsys, "fit", "--config=configs/quickstart.yaml", "--config=wandb.yaml")["trainer"]["logger"]
    assert [each["class_path"].rpartition(".")[2] for each in loggers] == ["TensorBoardLogger", "WandbLogger"]
    assert loggers[1]["init_args"]["version"] is None, "nothing of the other logger's"
