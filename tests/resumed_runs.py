"""Runs `train.py fit` to its end through kills, for test_resume.py: python resumed_runs.py FOLDER CASES

CASES is a JSON list of cases, a case a list of starts, and a start "point@step/workers": where it kills itself, and
the loader's workers. "" runs to the end, "flip" damages the newest file. Each start is a process of its own, forked
after the imports, which are most of the time.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from inpaint_module import checkpoint_io

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
LOG = "steps.jsonl"


def tiny_config(workers: int = 0) -> dict[str, Any]:
    """The quickstart at 64 pixels: 8 steps of 2 batches, dropout, a checkpoint every 2 steps, validation every 4."""
    config = yaml.safe_load(CONFIG.read_text())
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    trainer |= {"accelerator": "cpu", "max_steps": 8, "accumulate_grad_batches": 2, "limit_train_batches": 12}
    trainer |= {"val_check_interval": 4, "limit_val_batches": 1, "log_every_n_steps": 1}
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    checkpoint = trainer["callbacks"][0]
    checkpoint["init_args"] = {"dirpath": "checkpoints", "save_last": True, "every_n_train_steps": 2}
    trainer["callbacks"] = [checkpoint, {"class_path": "resumed_runs.Recorder"}]
    model["denoiser"]["init_args"]["config"] |= {
        "sample_size": 8,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "dropout": 0.1,
    }
    model["lr_scheduler"]["init_args"]["total_steps"] = 8
    data |= {"batch_size": 2, "val_batch_size": 2, "image_size": 64, "num_workers": workers}
    return config


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kind(path: Path) -> str:
    """`last`, or `epoch` for one by step."""
    return "last" if path.name.startswith("last") else "epoch"


class Recorder(Callback):
    """Appends what each batch was and gave to `steps.jsonl`, and dies where the variable KILL says."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch the checkpoint file being written."""
        self.trainer = trainer
        writer, replace = checkpoint_io._HashingWriter, os.replace

        class DyingWriter(writer):  # type: ignore[misc, valid-type]
            def write(inner, data: bytes) -> int:
                if inner.file.tell() > 50_000:
                    self.at(f"save:{kind(Path(inner.file.name))}")
                return super().write(data)

        def dying_replace(source: Path, target: Path) -> None:
            self.at(f"before:{kind(target)}")
            replace(source, target)
            self.at(f"after:{kind(target)}")

        checkpoint_io._HashingWriter = DyingWriter  # type: ignore[misc]
        checkpoint_io.os = mock.Mock(wraps=os, replace=dying_replace, SEEK_END=os.SEEK_END, O_RDONLY=os.O_RDONLY)

    def at(self, point: str) -> None:
        if os.environ.get("KILL") == f"{point}@{self.trainer.global_step}":
            die()

    def write(self, **line: Any) -> None:
        with open(LOG, "a") as file:
            file.write(json.dumps(line) + "\n")

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.at("batch")

    def on_after_backward(self, *args: Any, **kwargs: Any) -> None:
        self.at("backward")

    def on_before_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.at("optimizer")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss, rate = outputs["loss"].item().hex(), trainer.optimizers[0].param_groups[0]["lr"].hex()
        total = trainer.fit_loop.total_batch_idx
        self.write(batch=total, step=trainer.global_step, loss=loss, rate=rate, keys=batch["__key__"])

    def on_validation_start(self, *args: Any) -> None:
        self.at("validation")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: value.item().hex() for name, value in trainer.callback_metrics.items() if "val/" in name}
        self.write(validation=trainer.global_step, **metrics)


def start(kill: str) -> int:
    """The exit status of one start of `train.py fit`, killed or not."""
    import train

    if child := os.fork():
        return os.waitpid(child, 0)[1]
    os.environ["KILL"] = kill
    sys.argv = ["train.py", "fit", "--config", "config.yaml"]
    try:
        train.main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def flip(path: Path) -> None:
    """Turn one bit over, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def run(folder: Path, starts: list[str]) -> None:
    """Start again after each kill."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    for each in starts:
        if each == "flip":
            flip(max(Path("checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns))
            continue
        kill, _, workers = each.partition("/")
        Path("config.yaml").write_text(yaml.safe_dump(tiny_config(int(workers or 0))))
        status = start(kill)
        if status != (signal.SIGKILL if kill else 0):
            raise SystemExit(f"{folder.name}: start {each!r} of {starts} ended with status {status}")


if __name__ == "__main__":
    importlib.import_module("resumed_runs")  # the callback's module, before the forks
    for number, case in enumerate(json.loads(sys.argv[2])):
        run(Path(sys.argv[1]) / str(number), case)
