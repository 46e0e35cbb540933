"""The command line: every verb runs, every config trains, mistakes are named."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from PIL import Image
from run_processes import child
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_folders import BASES, CONTROLNET_BASES, PLAIN_BASES, config_over

import train
from datamodules import cache_latents, doctor, index_shards, make_shards, predict
from inpaint_module import compare_runs, export
from inpaint_module.cli.parser import read_parts
from inpaint_module.masks.gallery import main as gallery
from inpaint_module.training.checkpoints import VerifiedCheckpointIO
from inpaint_module.training.run_lock import claim

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
COMPLETE = ["quickstart"]  # test_fit_validate_test_and_predict trains it
PLAIN = ["bf16", "compiled", "from_fill"]  # overlays that need no other model
COMMANDS = [
    *(make_shards.main, index_shards.main, cache_latents.main, predict.main, doctor.main),
    *(export.main, compare_runs.main, gallery),
]
ELSEWHERE = {
    "multi_gpu": "test_distributed.py",
    "latent_cache": "latent_cache/test_latent_cache_training.py",
    **dict.fromkeys(("adamw8bit", "prodigy", "schedule_free"), "test_optimizers.py"),
    **dict.fromkeys(("removal", "from_image"), "test_pairs.py"),
}  # where they are trained
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),  # two tiny steps need none
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning 2.6 on torch's newest pytree
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*not supported by the model summary.*"),
    pytest.mark.filterwarnings("ignore:.*available but not used.*"),  # the tests train on the CPU
]
QUICK = [
    "--trainer.max_steps=2",
    "--trainer.limit_train_batches=2",
    "--trainer.val_check_interval=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.batch_size=2",
    "--data.image_size=64",
]
FEW = [
    "--data.val_batch_size=2",
    "--model.sampling_steps=2",
    "--trainer.limit_val_batches=1",
    "--trainer.callbacks.ValidationReport=null",
]


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configs write into `runs` of the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls its old names
    return tmp_path / "runs" / "quickstart"


def picture_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def quickstart(verb: str, *arguments: str, code: int = 0) -> None:
    options = QUICK if verb == "fit" else [o for o in QUICK if not o.startswith(("--trainer.max", "--trainer.log"))]
    run(verb, ROOT / "configs" / "quickstart.yaml", *options, *arguments, code=code)


def run(verb: str, config: Path, *options: str, code: int = 0) -> None:
    os.environ.pop("PL_GLOBAL_SEED", None)  # of the run before
    with mock.patch.object(sys, "argv", ["train.py", verb, "--config", str(config), *options]):
        assert train.main() == code


def test_fit_validate_test_and_predict(run_folder: Path) -> None:
    quickstart("fit", "--data.val_batch_size=4", "--trainer.callbacks.ValidationReport.photos=1")
    checkpoint = run_folder / "checkpoints" / "last.ckpt"
    assert picture_size(run_folder / "grids" / "step_000002.png") == (6 * 64, 8 * 64 + 14)
    events = EventAccumulator(str(run_folder), size_guidance={"images": 0}).Reload()
    names = {f"val/psnr_{name}" for name in ("inside", "outside", "inside_grey", "inside_mean_colour", "inside_smooth")}
    names |= {"train/loss", "val/mask_leak", "val/mask_overcover"}
    assert names <= set(events.Tags()["scalars"])
    assert "val/grid" in events.Tags()["images"]
    assert {"run.json", "metrics.csv", "report.html", "report.json", "config.yaml"} <= {
        f.name for f in run_folder.iterdir()
    }
    config = (run_folder / "config.yaml").read_bytes()
    few = {"validate": ["--trainer.limit_val_batches=1"], "test": ["--trainer.limit_test_batches=1"], "predict": []}
    for verb, options in few.items():
        run(verb, run_folder / "config.yaml", f"--ckpt_path={checkpoint}", *options)
    run("fit", run_folder / "config.yaml", "--trainer.limit_val_batches=0")  # finished, and accepted
    assert (run_folder / "config.yaml").read_bytes() == config
    parts = read_parts([run_folder / "config.yaml"], model=LightningModule, data=LightningDataModule)
    assert parts.data.init_args.batch_size == 2  # as export, predict, doctor and cache_latents read it
    written = sorted((run_folder / "predictions").glob("*.png"))
    assert len(written) == 16
    assert picture_size(written[0]) == (64, 64)


@pytest.mark.parametrize("name", PLAIN)
def test_an_overlay_of_settings_trains_two_steps(name: str, run_folder: Path, tmp_path: Path) -> None:
    overlay = f"--config={ROOT / 'configs' / f'{name}.yaml'}"
    with torch.compiler.set_stance("force_eager"):  # Inductor would need a C++ compiler on the machine, and a minute
        run("fit", ROOT / "configs" / "quickstart.yaml", overlay, *QUICK, *FEW, "--samples=null")
    assert (tmp_path / "runs" / name / "checkpoints" / "last.ckpt").exists()


@pytest.mark.filterwarnings("ignore:a caption fills all")  # the tiny tokenizers make a token of each letter
@pytest.mark.parametrize(
    ("name", "lora"),
    [(name, False) for name in BASES]
    + [pytest.param(name, True, marks=[pytest.mark.slow] * (name != "sd15")) for name in BASES],
)
@pytest.mark.filterwarnings("ignore:StableDiffusion3InpaintPipeline of the installed")
def test_an_overlay_trains_two_steps(name: str, lora: bool, run_folder: Path, tmp_path: Path) -> None:
    overlays = [f"--config={config_over(name, tmp_path)}"]
    overlays += [f"--config={ROOT / 'configs' / 'lora.yaml'}"] if lora else []
    run("fit", ROOT / "configs" / "quickstart.yaml", *overlays, *QUICK, *FEW)
    folder = tmp_path / "runs" / ("lora" if lora else name)
    state = VerifiedCheckpointIO().load_checkpoint(folder / "checkpoints" / "last.ckpt")
    trained = {key: value for key, value in state["current_model_state"].items() if key.startswith("denoiser.")}
    assert all(torch.equal(state["state_dict"][key], value) for key, value in trained.items())  # too early to average
    if lora:
        command = [str(tmp_path / "out"), f"--config={folder / 'config.yaml'}"]
        assert export.main([*command, f"--checkpoint={folder / 'checkpoints' / 'last.ckpt'}"]) == 0
        exported = load_file(tmp_path / "out" / export.LORA_FILE)
        largest = [max(v.abs().max() for k, v in each.items() if "lora_B" in k) for each in (trained, exported)]
        assert largest[0] == largest[1] > 0


@pytest.mark.filterwarnings("ignore:a caption fills all")
@pytest.mark.filterwarnings("ignore:StableDiffusion3InpaintPipeline of the installed")
@pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # norms of a ControlNet in float32
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("sd15_plain", "sd15_controlnet") else pytest.mark.slow)
        for name in PLAIN_BASES | CONTROLNET_BASES
    ],
)
def test_an_overlay_of_another_way_trains_two_steps(name: str, run_folder: Path, tmp_path: Path) -> None:
    run("fit", ROOT / "configs" / "quickstart.yaml", f"--config={config_over(name, tmp_path)}", *QUICK, *FEW)
    state = VerifiedCheckpointIO().load_checkpoint(tmp_path / "runs" / name / "checkpoints" / "last.ckpt")
    zero_at_first = ("lora_B", "controlnet_down_blocks", "controlnet_blocks", "after_proj")
    trained = [value for key, value in state["state_dict"].items() if any(part in key for part in zero_at_first)]
    assert max(value.abs().max() for value in trained) > 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_thin_says_its_command_and_is_trained(path: Path) -> None:
    text = path.read_text()
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    base = "" if path.stem in COMPLETE else "--config configs/quickstart.yaml "
    between = {"lora": "--config configs/sd15.yaml ", "from_image": "--config configs/removal.yaml "}.get(path.stem, "")
    assert f"inpaint fit {base}{between}--config configs/{path.name}" in header
    assert isinstance(yaml.safe_load(text), dict)
    if path.stem not in COMPLETE:
        assert len([line for line in text.splitlines() if line and not line.startswith("#")]) <= 15
    assert path.stem in [*COMPLETE, *PLAIN, *BASES, *PLAIN_BASES, *CONTROLNET_BASES, "lora", *ELSEWHERE]
    assert path.stem not in ELSEWHERE or path.name in (ROOT / "tests" / ELSEWHERE[path.stem]).read_text()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--data.train_shards=nowhere/*.tar", "nowhere"),
        ("--data.batch_sise=3", "batch_sise"),
        ("--data.batch_size=0", "data.batch_size: expected at least 1, got 0"),
        ("--model.layout.init_args.reduce=mean", "reduce must be one of max, area"),
        ("--model.encoder.init_args.fill=2", "fill must be a number in 0..1"),
        ("--model.denoiser.init_args.config.in_channels=4", "expected 33 channels, got 4"),
        ("--model.encoder.init_args.vae.init_args.path=nowhere", "nowhere"),
    ],
)
def test_mistakes_are_named(run_folder: Path, capfd: pytest.CaptureFixture[str], argument: str, message: str) -> None:
    with suppress(SystemExit):
        quickstart("fit", argument, code=1)
    last = capfd.readouterr().err.strip().splitlines()[-2:]
    assert message in "\n".join(last)


def test_a_second_process_in_a_run_folder_is_refused_before_it_writes(
    run_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with child(lambda: claim(run_folder)) as pid:
        quickstart("fit", code=1)
    assert f"in use by process {pid} on " in capfd.readouterr().err.splitlines()[-1]
    assert [path.name for path in run_folder.iterdir()] == ["run.lock"]


def test_help_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    with mock.patch.object(sys, "argv", ["train.py", "fit", "--help"]), pytest.raises(SystemExit, match="0"):
        train.main()
    assert "usage: python -m train fit --config FILE" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__module__)
def test_help_of_every_command(command: Callable[[list[str]], Any]) -> None:
    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", autospec=True) as shown,
        pytest.raises(SystemExit, match="0"),
    ):
        command(["--help"])
    (parser,) = shown.call_args.args
    assert parser.format_usage().startswith("usage: inpaint ")
    assert max(map(len, parser.format_help().splitlines())) <= 120
    assert [action.dest for action in parser._actions if not action.help] == []


def test_train_py_is_short() -> None:
    assert len((ROOT / "train.py").read_text().splitlines()) < 40
