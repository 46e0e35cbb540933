"""A tiny run of `train.py`, one rank or many, that writes down what it does and dies where it is told."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from inpaint_module import files
from inpaint_module.training import checkpoints as checkpoint_io
from inpaint_module.training import run_folder

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
STEPS = 8
SAVES: dict[str, dict[str, Any]] = {
    "steps": {"every_n_train_steps": 2},
    "validations": {},
    "epochs": {"save_on_train_epoch_end": True},
}


@dataclass(frozen=True)
class Setup:
    """How a run goes; the defaults are one process that decodes by itself."""

    ranks: int = 1
    workers: int = 0  # of the loader
    batch_size: int = 2
    val_batch_size: int = 2
    window: int = 2  # accumulate_grad_batches
    strategy: str = "ddp"  # of more than one rank; or "fsdp"
    ema: bool = False
    data: dict[str, Any] = field(default_factory=dict)  # further arguments of the data module
    saves: str = "steps"  # when checkpoints are written, of SAVES
    tmpdir: str = ""
    timeout: str = ""  # of the strategy
    local_disks: bool = False  # each rank works in a folder of its own
    record: bool = False  # all that writes into the run folder
    guard: bool = True  # NonFiniteGuard
    max_dropped: int = 20
    verb: str = "fit"
    options: tuple[str, ...] = ()  # of the command line


def tiny_config(setup: Setup) -> dict[str, Any]:
    """The quickstart at 64 pixels: 8 steps with dropout, checkpoint and validation every 2 steps, 6 steps an epoch."""
    config = yaml.safe_load(CONFIG.read_text())
    trainer, model, data = config["trainer"], config["model"]["init_args"], config["data"]["init_args"]
    trainer |= {"accelerator": "cpu", "max_steps": STEPS, "accumulate_grad_batches": setup.window}
    trainer |= {"val_check_interval": 2 * setup.window, "limit_train_batches": 6 * setup.window}
    trainer |= {"limit_val_batches": 1 if setup.verb == "fit" else 1.0, "log_every_n_steps": 1, "logger": False}
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False} | _strategy(setup)
    trainer["callbacks"] = _callbacks(setup)
    model["base"]["init_args"]["denoiser"]["init_args"]["config"] |= {
        "sample_size": 8,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "dropout": 0.1,
    }
    model["lr_scheduler"]["init_args"]["total_steps"] = STEPS
    data |= {
        "batch_size": setup.batch_size,
        "val_batch_size": setup.val_batch_size,
        "image_size": 64,
        "num_workers": setup.workers,
    }
    data |= setup.data
    return config


def _strategy(setup: Setup) -> dict[str, Any]:
    if setup.ranks == 1:
        return {}
    timeout = {"timeout": setup.timeout} if setup.timeout else {}
    strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": timeout}
    if setup.strategy == "fsdp":
        sharded = {"data_parallel_size": setup.ranks, "tensor_parallel_size": 1, "save_distributed_checkpoint": False}
        strategy = {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy", "init_args": sharded | timeout}
    return {"devices": setup.ranks, "strategy": strategy}


def _callbacks(setup: Setup) -> list[dict[str, Any]]:
    checkpoint = {"dirpath": "checkpoints", "save_last": True, **SAVES[setup.saves]}
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoint},
        {"class_path": "inpaint_module.ValidationLoss"},
        {"class_path": "tiny_run.Recorder"},
    ]
    if setup.record:
        report = {"presets": ["sd"], "photos": 1}
        callbacks += [
            {"class_path": "inpaint_module.training.ImageGrid", "init_args": {"rows": 2}},
            {"class_path": "inpaint_module.training.RunRecord"},
            {"class_path": "inpaint_module.report.ValidationReport", "init_args": report},
        ]
    if setup.ema:
        ema = {"class_path": "inpaint_module.training.averages.EMA", "init_args": {"decay": 0.5}}
        callbacks.insert(1, ema)
    if setup.max_dropped != 20:
        guard = "inpaint_module.training.nonfinite_guard.NonFiniteGuard"
        callbacks.append({"class_path": guard, "init_args": {"max_dropped": setup.max_dropped}})
    return callbacks


def kind(path: Path) -> str:
    """`last`, or `epoch` for a checkpoint by step; any other file by its name."""
    name = path.name.removesuffix(".tmp")
    return name.split("=")[0].removesuffix(".ckpt") if name.endswith(".ckpt") else name


def path_of(descriptor: int) -> Path:
    """The path of an open file."""
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


class Recorder(Callback):
    """Appends what each batch was and gave to `steps<rank>.jsonl`, and acts where the variable KILL says.

    KILL is `point@step`, where all processes of the group are killed; or `rank1@step` or `stop1@step`, where rank 1
    alone is killed or stopped; or `poison1@step`, where its activations are NaN, and `poison1@` for every step. Points
    `write:NAME`, `before:NAME` and `after:NAME` are when half of a file is written, and before and after it is put in
    its place; `append:NAME` when half of what is appended is.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch files being written."""
        self.trainer, self.log = trainer, Path(f"steps{trainer.global_rank}.jsonl").absolute()
        self.keys: list[str] = []
        writer = checkpoint_io._HashingWriter

        class DyingWriter(writer):  # type: ignore[misc, valid-type]
            def write(inner, data: bytes) -> int:
                if inner.file.tell() > 50_000:
                    self.at(f"save:{kind(path_of(inner.file.fileno()))}")
                return super().write(data)

        append = run_folder.append_lines

        def dying_append(path: Path, lines: str) -> None:
            if self.told(point := f"append:{path.name}"):
                append(path, lines[: len(lines) // 2])
                self.at(point)
            append(path, lines)

        checkpoint_io._HashingWriter = DyingWriter  # type: ignore[misc]
        run_folder.append_lines = dying_append
        files.os = SimpleNamespace(**vars(os) | {"fsync": self.fsync, "replace": self.replace})  # type: ignore

    def fsync(self, descriptor: int) -> None:
        """Leave half of the file and die, if the kill is to come inside the writing."""
        point = f"write:{kind(path_of(descriptor))}"
        if self.told(point):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            self.at(point)
        os.fsync(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        self.at(f"before:{kind(target)}")
        os.replace(source, target)
        self.at(f"after:{kind(target)}")

    def told(self, point: str) -> bool:
        return os.environ.get("KILL") == f"{point}@{self.trainer.global_step}"

    def at(self, point: str) -> None:
        if self.told(point):
            os.killpg(0, signal.SIGKILL)

    def write(self, **line: Any) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        self.at("batch")
        rank = trainer.global_rank
        for point, sign in {f"rank{rank}": signal.SIGKILL, f"stop{rank}": signal.SIGSTOP}.items():
            if self.told(point):
                os.kill(os.getpid(), sign)
        self.poison = None
        if self.told(f"poison{rank}") or os.environ.get("KILL") == f"poison{rank}@":
            layer: Any = pl_module.denoiser.conv_in  # type: ignore[union-attr]
            self.poison = layer.register_forward_hook(lambda layer, arguments, out: out * torch.nan)

    def on_after_backward(self, *args: Any, **kwargs: Any) -> None:
        self.at("backward")

    def on_before_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.at("optimizer")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.poison is not None:
            self.poison.remove()
        loss, rate = outputs["loss"].item().hex(), trainer.optimizers[0].param_groups[0]["lr"].hex()
        total = trainer.fit_loop.total_batch_idx
        where = {"batch": total, "step": trainer.global_step, "world": trainer.world_size}
        shape = list(batch["image"].shape)
        self.write(**where, loss=loss, rate=rate, keys=batch["__key__"], shape=shape)

    def on_validation_start(self, *args: Any) -> None:
        self.keys = []
        self.at("validation")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        self.keys += [key for key, position in zip(batch["__key__"], batch["position"], strict=True) if position >= 0]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at("validated")
        metrics = {name: value.item().hex() for name, value in trainer.callback_metrics.items() if "val/" in name}
        self.write(validation=trainer.global_step, keys=self.keys, **metrics)
