"""Trains on two ranks, forked after the imports, for test_training_state.py and test_table.py:
python two_ranks.py FOLDER VERB ...
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from quiet_trainer import quiet_trainer
from resumed_runs import ended, start
from tiny_models import tiny_batch, tiny_denoiser, tiny_vae
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, IterableDataset

from inpaint_module import InpaintEncoder
from inpaint_module.base_models import BaseModel, LoRA, ModelParts, StableDiffusionLayout
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.nonfinite_guard import NonFiniteGuard
from inpaint_module.training.watch import ValidationLoss


class Batches(IterableDataset[dict[str, Any]]):
    """An endless stream from batch `start` on, 2 photos per rank and batch."""

    def __init__(self, start: int, rank: int, ranks: int):
        self.start, self.rank, self.ranks = start, rank, ranks

    def __iter__(self) -> Iterator[dict[str, Any]]:
        firsts = (2 * (step * self.ranks + self.rank) for step in itertools.count(self.start))
        return (tiny_batch(first=first) | {"caption": ["the cat", "a dog"]} for first in firsts)


def tiny(vae_seed: int = 0) -> InpaintDiffusion:
    """As `tiny_models.tiny_module`, over any VAE."""
    return InpaintDiffusion(
        ModelParts(
            tiny_denoiser(),
            InpaintEncoder(tiny_vae(vae_seed), normalize=True),
            StableDiffusionLayout("max"),
            DDIMScheduler(prediction_type="v_prediction"),
        )
    )


def fit(
    module: LightningModule,
    steps: int = 2,
    *,
    start: int = 0,
    rank: int = 0,
    devices: int = 1,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Trainer:
    """Train on the CPU until step `steps` with the stream's batches from `start` on; the trainer, afterwards."""
    trainer = quiet_trainer(steps, devices=devices, **options)
    loader = DataLoader(Batches(start, rank, devices), batch_size=None)
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, whole where they are sharded."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in module.named_parameters()
    }


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether these are the same weights, to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Poison(Callback):
    """Makes the gradients of rank 1 NaN at step 1, when the ranks have averaged theirs."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.global_rank == trainer.global_step == 1:
            for weight in pl_module.parameters():
                weight.grad = torch.full_like(weight, torch.nan)


def refusal(*arguments: Any, **options: Any) -> str:
    """What the ValueError says that `fit` raises."""
    try:
        fit(*arguments, **options)
    except ValueError as error:
        return str(error)
    return "not refused"


def ddp(rank: int, folder: Path) -> dict[str, Any]:
    """Train; with gradients of rank 1 that are NaN at step 1; and with another VAE on rank 1."""
    options: dict[str, Any] = {"strategy": "ddp", "devices": 2, "rank": rank}
    module, guarded, guard = tiny(), tiny(), NonFiniteGuard()
    fit(module, **options).save_checkpoint(folder / "full.ckpt")
    fit(guarded, 3, callbacks=[Poison(), guard], **options)
    states = {"weights": weights(module), "guarded": weights(guarded), "dropped": guard.dropped}
    return states | {"refused": refusal(tiny(vae_seed=rank), **options), "losses": validated(tiny(), rank)}


def validated(module: LightningModule, rank: int) -> dict[str, float]:
    """What `ValidationLoss` finds of three photos: two on rank 0, one and a padding on rank 1."""
    batch = tiny_batch(first=2 * rank)
    batch["position"][2 - rank :] = -1
    trainer = quiet_trainer(1, strategy="ddp", devices=2, callbacks=[ValidationLoss()])
    (found,) = trainer.validate(module, DataLoader([batch], batch_size=None), verbose=False)
    return {name: value for name, value in found.items() if name.startswith("val/loss")}


def fsdp(rank: int, folder: Path) -> dict[str, Any]:
    """Train 4 steps in one go, and 2 and 2 with a full checkpoint between; then resume with another VAE."""

    def options() -> dict[str, Any]:
        strategy = ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend="gloo",
        )
        return {"strategy": strategy, "devices": 2, "rank": rank}

    path, in_one_go, resumed = folder / "full.ckpt", tiny(), tiny()
    fit(in_one_go, 4, **options())
    fit(tiny(), 2, **options()).save_checkpoint(path)
    fit(resumed, 4, start=2, ckpt_path=path, **options())
    return {
        "weights": weights(resumed),
        "in_one_go": weights(in_one_go),
        "shard": tuple(resumed.denoiser.conv_in.weight.to_local().shape),
        "refused": refusal(tiny(vae_seed=1), 4, start=2, ckpt_path=path, **options()),
    }


def ways(rank: int, folder: Path) -> dict[str, Any]:
    """Of each base model in `bases/WAY/KIND.NAME`: 2 steps in one go, and 1 and 1 with a checkpoint between."""
    found, options = {}, {"strategy": "ddp", "devices": 2, "rank": rank}
    for path in sorted((folder.parent / "bases").glob("*/*")):

        def made(path: Path = path) -> InpaintDiffusion:
            lora = LoRA(2) if path.name.startswith("lora.") else None
            return InpaintDiffusion(BaseModel(str(path), train=path.parent.name, lora=lora))

        in_one_go, resumed, checkpoint = made(), made(), folder / f"{path.parent.name}.{path.name}.ckpt"
        fit(in_one_go, 2, **options)
        fit(made(), 1, **options).save_checkpoint(checkpoint)
        fit(resumed, 2, start=1, ckpt_path=checkpoint, **options)
        found[f"{path.parent.name} {path.name}"] = weights(in_one_go), weights(resumed), weights(made())
    return found


def run(verb: str, folder: Path, environment: dict[str, str]) -> None:
    """What a rank does."""
    os.environ |= environment
    rank = int(environment["RANK"])
    torch.save({"ddp": ddp, "fsdp": fsdp, "ways": ways}[verb](rank, folder), folder / f"rank{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for verb in sys.argv[2:]:
        folder = Path(sys.argv[1]) / verb
        folder.mkdir()
        if any(ended(start(2, partial(run, verb, folder)), "")):
            sys.exit(f"{verb} failed")
