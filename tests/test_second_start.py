"""The same command again, or nearly: it goes on, says what has changed, or says why not."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from quiet_trainer import QUIET, quiet_trainer
from tiny_models import tiny_module
from tiny_run import Setup, tiny_config

import train
from inpaint_module.cli.training import ResumingCLI
from inpaint_module.training.changes import changes, settings_of
from inpaint_module.training.checkpoints import VerifiedCheckpointIO, newest_valid_checkpoint, read_plain
from inpaint_module.training.lightning_private import is_open, keep_versions, last_version, versions_of
from inpaint_module.training.resume import ExactResume, check_trained

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Experiment logs directory"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
    pytest.mark.filterwarnings("ignore:.*was not created with WeightAveraging"),
    pytest.mark.filterwarnings("ignore:data mask_generator"),
]
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.125, "momentum": 0.9}}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two steps, saved at each, in the current folder; `dirpath` is the logger's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    found = tiny_config(Setup(window=1))
    saves = {"save_last": True, "every_n_train_steps": 1, "save_top_k": -1}
    checkpoint = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saves}
    limits = {"max_steps": 2, "limit_val_batches": 0, "default_root_dir": "run", "limit_train_batches": 100}
    found["trainer"] |= limits | {"callbacks": [checkpoint], "val_check_interval": 100}
    return found


def run(verb: str, config: dict[str, Any], *options: str) -> int:
    os.environ.pop("PL_GLOBAL_SEED", None)
    Path("tiny.yaml").write_text(yaml.safe_dump(config))
    with mock.patch.object(sys, "argv", ["train.py", verb, "--config", "tiny.yaml", *options]):
        return train.main()


def said(caplog: pytest.LogCaptureFixture, *heads: str) -> list[str]:
    found = [each.message for each in caplog.records if each.message.startswith(heads)]
    caplog.clear()
    return found


def last(folder: str = "run") -> dict[str, Any]:
    path = newest_valid_checkpoint(Path(folder))
    assert path is not None
    return VerifiedCheckpointIO().load_checkpoint(path)


@pytest.mark.parametrize("logger", [pytest.param("csv", marks=pytest.mark.slow), "default"])
def test_a_logger_that_counts_versions_goes_on_in_the_last(
    logger: str, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    csv = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "run"}}
    config["trainer"]["logger"] = csv if logger == "csv" else True
    assert run("fit", config) == 0
    first = said(caplog, "resume: ")
    assert first == ["resume: no checkpoint yet, starting from scratch"]
    Path("run/lightning_logs/version_7").mkdir()  # of a start that was killed before its first checkpoint
    assert run("fit", config, "--trainer.max_steps=3") == 0
    lines = said(caplog, "resume: ")
    assert "resume: the logger goes on in run/lightning_logs/version_0; to start anew" in lines[0]
    assert "going on from run/lightning_logs/version_0/checkpoints/last.ckpt at step 2" in lines[1]
    assert {path.name for path in Path("run/lightning_logs").iterdir()} == {"version_0", "version_7"}
    assert last()["global_step"] == 3
    assert run("validate", config, "--trainer.limit_val_batches=1") == 0
    assert "last.ckpt, at step 3" in said(caplog, "weights: ")[0]
    assert len(list(Path("run/lightning_logs").iterdir())) == 2


def test_what_has_changed_is_said_and_takes_effect(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Learning rates and weight decays by hand: OneCycleLR divides its largest by 25 at step 0."""
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    model["lr_scheduler"] = None
    model["optimizer"]["init_args"] |= {"lr": 1e-3, "weight_decay": 0.01}
    assert run("fit", config) == 0
    moments = last()["optimizer_states"][0]["state"][0]["exp_avg"]
    said(caplog)
    model["optimizer"]["init_args"] |= {"lr": 5e-4, "weight_decay": 0.5}
    data |= {"batch_size": 1, "image_size": 32}
    data["mask_generator"] = {"class_path": "inpaint_module.masks.Boxes"}
    ema = {"class_path": "inpaint_module.training.EMA", "init_args": {"decay": 0.5}}
    config["trainer"]["callbacks"].append(ema)
    assert run("fit", config, "--trainer.max_steps=3") == 0
    assert said(caplog, "resume: changed") == [
        f"resume: changed since the checkpoint: {line}"
        for line in (
            "data.batch_size: 2 -> 1",
            "data.image_size: 64 -> 32",
            "data.mask_generator: inpaint_module.masks.Mixture -> inpaint_module.masks.Boxes",
            "model.optimizer.lr: 0.001 -> 0.0005",
            "model.optimizer.weight_decay: 0.01 -> 0.5",
            "trainer.callbacks.EMA: none -> inpaint_module.training.EMA",
            "trainer.max_steps: 2 -> 3",
        )
    ]
    group = last()["optimizer_states"][0]["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == (5e-4, 0.5)
    assert last()["optimizer_states"][0]["state"][0]["step"] == 3
    assert not torch.equal(moments, last()["optimizer_states"][0]["state"][0]["exp_avg"])
    trained = last()["current_model_state"]["denoiser.conv_in.weight"]
    config["trainer"]["callbacks"].pop()  # without the average, training goes on from what was trained
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 0.0
    assert run("fit", config, "--trainer.max_steps=4") == 0
    assert torch.equal(last()["state_dict"]["denoiser.conv_in.weight"], trained)


def test_a_rate_that_the_schedule_overrules_is_said_to_be_without_effect(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a data set of another name is refused with both names; what is refused leaves no folder behind."""
    data, rates = config["data"]["init_args"], config["model"]["init_args"]["optimizer"]["init_args"]
    assert run("fit", config, "--data.batch_size=100000000", "--trainer.logger=true") == 1
    assert "data.batch_size: expected a batch that fits" in capsys.readouterr().err
    assert os.listdir() == ["tiny.yaml"]
    assert run("fit", config) == 0
    before = last()["optimizer_states"][0]["param_groups"][0]
    rates["lr"] = 0.5
    said(caplog)
    assert run("fit", config, "--trainer.max_steps=3") == 0
    (line,) = [line for line in said(caplog, "resume: changed") if "lr" in line]
    assert line.endswith("model.optimizer.lr: 0.001 -> 0.5, without effect: OneCycleLR sets it")
    assert last()["optimizer_states"][0]["param_groups"][0]["max_lr"] == before["max_lr"] == 1e-3
    data["train_shards"] = "embedded:val"
    assert run("fit", config, "--trainer.max_steps=4") == 1
    told = capsys.readouterr().err
    assert "data.train_shards holds other samples than then" in told
    assert "Changed since the checkpoint: data.train_shards: embedded:train -> embedded:val" in told
    assert run("validate", config, "--ckpt_path=run/checkpoints") == 1
    assert "checkpoint run/checkpoints: expected one file, got a folder" in capsys.readouterr().err


def test_another_optimizer_starts_anew_where_the_schedule_is(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert run("fit", config) == 0
    said(caplog)
    model = config["model"]["init_args"]
    steps = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}
    model |= {"optimizer": SGD, "lr_scheduler": steps}
    assert run("fit", config, "--trainer.max_steps=3") == 0
    lines = said(caplog, "resume: ")
    assert "resume: changed since the checkpoint: model.optimizer: torch.optim.AdamW -> torch.optim.SGD" in lines
    assert "resume: the state of SGD starts anew" in lines
    state = last()
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 0.125 / 8
    assert state["lr_schedulers"][0]["last_epoch"] == 3


def test_a_checkpoint_without_a_record_goes_on_but_not_with_another_optimizer(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", config) == 0
    for path in Path("run").rglob("*.ckpt"):
        old = VerifiedCheckpointIO().load_checkpoint(path)
        del old["run_settings"], old["log_versions"]
        VerifiedCheckpointIO().save_checkpoint(old, path)
    config["model"]["init_args"] |= {"optimizer": SGD, "lr_scheduler": None}
    assert run("fit", config, "--trainer.max_steps=3") == 1
    assert (
        "model.optimizer: expected the class that the checkpoint was trained with, got SGD" in capsys.readouterr().err
    )
    config["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
    assert run("fit", config, "--trainer.max_steps=3") == 0
    config["model"]["init_args"]["base"]["init_args"]["denoiser"]["init_args"]["config"]["block_out_channels"] = [8, 24]
    assert run("fit", config, "--trainer.max_steps=4") == 1
    assert "model: expected the weights of the checkpoint's model, got others: " in capsys.readouterr().err


def test_going_back_leaves_later_steps_aside_and_the_same_command_goes_on(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert run("fit", config, "--trainer.max_steps=4") == 0
    folder = Path("run/checkpoints")
    back = f"--ckpt_path={folder / 'epoch=0-step=1.ckpt'}"
    said(caplog)
    assert run("fit", config, back) == 0
    assert [line.split(": ")[2] for line in said(caplog, "resume: ") if "kept as" in line] == [
        *(f"kept as epoch=0-step={step}.ckpt.newer" for step in (2, 3, 4)),
        "kept as last.ckpt.newer",
    ]
    assert {path.name for path in folder.glob("*.ckpt")} == {"epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt", "last.ckpt"}
    for options in ([back], []):  # killed and started again: with the option or without
        assert run("fit", config, *options, "--trainer.max_steps=3") == 0
        line = said(caplog, "resume: going on", "resume: finished")[0]
        assert ("going on from run/checkpoints/last.ckpt at step 2" if options else "at step 3 of 3") in line
    assert len(list(folder.glob("*.newer"))) == 4


def test_another_optimizer_of_sharded_weights_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    settings = {"model.optimizer": "torch.optim.AdamW", "model.optimizer.lr": "1"}
    path = tmp_path / "a.ckpt"
    VerifiedCheckpointIO().save_checkpoint({"global_step": 1, "run_settings": settings}, path)
    trainer: Any = quiet_trainer(1, plugins=[VerifiedCheckpointIO()])
    with mock.patch.object(type(trainer.strategy), "lightning_restore_optimizer", False):
        ExactResume(str(path), settings | {"model.optimizer.lr": "2"}).setup(trainer, tiny_module(), "fit")
        with pytest.raises(ValueError, match=r"model.optimizer: expected torch.optim.AdamW, .*, got torch.optim.SGD"):
            ExactResume(str(path), {"model.optimizer": "torch.optim.SGD"}).setup(trainer, tiny_module(), "fit")


def test_random_weights_are_not_measured(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", config, "--trainer.limit_val_batches=1") == 1
    assert "ckpt_path: expected a checkpoint, as the config's model has random weights" in capsys.readouterr().err
    assert ResumingCLI.before_test is ResumingCLI.before_predict is ResumingCLI.before_validate
    assert not list(Path("run").rglob("*.html"))


def test_a_loaded_denoiser_may_be_measured_untrained(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    denoiser = {"class_path": "inpaint_module.base_models.load_denoiser", "init_args": {"path": "some/base"}}
    check_trained(None, {"init_args": {"base": {"init_args": {"denoiser": denoiser}}}}, [Path("run/checkpoints")])
    assert said(caplog, "weights") == [
        "weights: those of some/base as they were loaded: no checkpoint in run/checkpoints"
    ]
    denoiser["init_args"] = {"class_name": "UNet2DModel"}  # type: ignore[assignment]
    with pytest.raises(ValueError, match="got none in no folder, as the config has no ModelCheckpoint"):
        check_trained(None, {"init_args": {"base": {"init_args": {"denoiser": denoiser}}}}, [])


def test_settings_are_named_and_hold_no_secret() -> None:
    part = {
        "class_path": "a.Part",
        "init_args": {"url": "https://u:p@host/x.tar?sig=abc", "token": "secret", "n": [1, 2]},
    }
    settings = settings_of({"data": part, "trainer": {"callbacks": [part, part]}, "ckpt_path": "x", "rate": 0.5})
    assert settings["data"] == "a.Part"
    assert settings["data.url"] == "https://host/x.tar"
    assert settings["data.token"] == "***"
    assert settings["data.n"] == "[1, 2]"
    assert settings_of({"data": [{"a": ["b.tar", 0.5]}]})["data"] == "[{a: [b.tar, 0.5]}]"
    assert changes({"data.n": "['1', '2']"}, settings) == changes({"data.n": "[1, 2]"}, settings)
    assert settings["trainer.callbacks.Part2"] == "a.Part"
    assert settings["rate"] == "0.5"
    assert "ckpt_path" not in settings
    assert settings == settings_of({"data": part, "trainer": {"callbacks": [part, part]}, "rate": 0.5})
    assert [str(each) for each in changes({"a": "x.A", "a.n": "1", "b": "1"}, {"a": "x.B", "a.m": "2", "b": "2"})] == [
        "a: x.A -> x.B",
        "b: 1 -> 2",
    ]


def test_a_class_under_its_earlier_path_is_no_change() -> None:
    moved = {"trainer.callbacks.EMA": "inpaint_module.callbacks.EMA", "a": "inpaint_module.A"}
    now = {"trainer.callbacks.EMA": "inpaint_module.EMA", "a": "inpaint_module.B"}
    assert [str(each) for each in changes(moved, now)] == ["a: inpaint_module.A -> inpaint_module.B"]


def test_the_last_version_is_by_number(tmp_path: Path) -> None:
    for number in (9, 10, 11):
        (tmp_path / "run" / f"version_{number}").mkdir(parents=True)
    for logger in (TensorBoardLogger(tmp_path, "run"), CSVLogger(tmp_path, "run")):
        trainer = quiet_trainer(1, logger=logger)
        assert last_version(trainer, lambda folder: folder.name != "version_11") == tmp_path / "run" / "version_10"
        assert last_version(trainer, lambda folder: False) is None
        assert is_open(logger)


def test_a_job_of_slurm_goes_on_in_the_last_version_or_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    logger = TensorBoardLogger(tmp_path, "run", version=12)  # as Lightning's default has it
    (tmp_path / "run" / "version_13").mkdir(parents=True)
    assert is_open(logger)
    assert last_version(quiet_trainer(1, logger=logger), Path.exists) == tmp_path / "run" / "version_13"
    (tmp_path / "run" / "version_12").mkdir()
    assert last_version(quiet_trainer(1, logger=logger), Path.exists) == tmp_path / "run" / "version_12"
    assert not is_open(TensorBoardLogger(tmp_path, "run", version=5))


def test_runs_by_id_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    fixed: list[Logger] = [CSVLogger(tmp_path, version=3), TensorBoardLogger(tmp_path, version="")]
    keep_versions(fixed, [1, 2])
    assert versions_of(fixed) == [3, ""]
    wandb = WandbLogger(save_dir=tmp_path, offline=True)
    keep_versions([wandb], ["abc"])
    assert wandb.version == "abc"
    first, again, lost = (MLFlowLogger(save_dir=str(tmp_path / "mlruns")) for _ in range(3))
    keep_versions([again, lost], [first.version, "of another database"])
    assert again.version == first.version
    assert lost.version not in (first.version, "of another database")


def test_plain_values_are_read_without_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    VerifiedCheckpointIO().save_checkpoint({"global_step": 3, "started_from": "x", "w": torch.ones(9)}, path)
    assert read_plain(path)["started_from"] == "x"
