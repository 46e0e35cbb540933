"""Optimizers of other packages: a run that is resumed ends with the bits of one that was not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import bitsandbytes
import prodigyopt
import pytest
import schedulefree
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from quiet_trainer import quiet_trainer
from test_ema import QUIET, Watch, loader, module
from test_train import QUICK
from torch import Tensor, nn
from two_ranks import equal, weights

import train
from inpaint_module.training.averages import EMA, AveragedOptimizer
from inpaint_module.training.checkpoints import VerifiedCheckpointIO, read_plain
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.memory import optimizer_bytes

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*"),  # the tests hand over the position
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "AdamW8bit": lambda weights: bitsandbytes.optim.AdamW8bit(weights, lr=1e-2, min_8bit_size=16),
    "Prodigy": lambda weights: prodigyopt.Prodigy(weights),
    "AdamWScheduleFree": lambda weights: schedulefree.AdamWScheduleFree(weights, lr=1e-2),
}


def fit(folder: Path, make: Any, steps: int, path: Path | None = None) -> tuple[InpaintDiffusion, Watch]:
    model, watch = module(optimizer=make), Watch()
    saves = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = quiet_trainer(
        steps,
        callbacks=[AveragedOptimizer(), watch, saves],
        plugins=[VerifiedCheckpointIO()],
        val_check_interval=3,
        limit_val_batches=1,
        num_sanity_val_steps=0,
    )
    start = 0 if path is None else read_plain(path)["global_step"]
    trainer.fit(model, loader(start), loader(100), ckpt_path=path)
    return model, watch


def assert_resumes(folder: Path, make: Any) -> None:
    whole, seen = fit(folder, make, 6)
    first = read_plain(folder / "step=6.ckpt")
    resumed, again = fit(folder, make, 6, folder / "step=2.ckpt")
    assert equal(weights(whole), weights(resumed))
    assert all(equal(one, other) for one, other in zip(seen.trained[2:], again.trained, strict=True))
    second = read_plain(folder / "step=6-v1.ckpt")
    assert repr(first["optimizer_states"]) == repr(second["optimizer_states"])
    assert equal(first["state_dict"], second["state_dict"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    assert_resumes(tmp_path, OPTIMIZERS[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own compiler on torchao's tensors
def test_torchao_resumes_too(tmp_path: Path) -> None:
    torchao = pytest.importorskip("torchao.optim")
    assert_resumes(tmp_path, lambda weights: torchao.AdamW8bit(weights, lr=1e-2, block_size=16))


def test_schedule_free_validates_and_saves_the_average(tmp_path: Path) -> None:
    model, watch = fit(tmp_path, OPTIMIZERS["AdamWScheduleFree"], 4)
    saved = read_plain(tmp_path / "step=4.ckpt")
    trained = {name: value for name, value in saved["current_model_state"].items() if name.startswith("denoiser")}
    averaged = {name: value for name, value in saved["state_dict"].items() if name.startswith("denoiser")}
    assert equal(trained, watch.trained[3]), "what training goes on from"
    assert equal(averaged, weights(model)), "the end of the training leaves the average in the model"
    z = saved["optimizer_states"][0]["state"][0]["z"]
    first = next(iter(trained))
    # Defazio et al. 2024, equation 3: y = 0.1 z + 0.9 x
    torch.testing.assert_close(averaged[first], (trained[first] - 0.1 * z) / 0.9, rtol=1e-4, atol=1e-5)
    assert not equal(watch.validated[0], watch.trained[2]), "validation has the average too"


OVERLAYS = ["adamw8bit.yaml", "prodigy.yaml", "schedule_free.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_goes_on_where_it_was(overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls its old names
    configs = ["--config=configs/quickstart.yaml", f"--config=configs/{overlay}"]
    more = ["--trainer.callbacks.ValidationReport=null", "--trainer.limit_val_batches=1", "--data.val_batch_size=2"]
    for steps in (1, 2):
        arguments = ["train", "fit", *configs, *QUICK, *more, f"--trainer.max_steps={steps}"]
        with mock.patch.object(sys, "argv", arguments):
            assert train.main() == 0
    saved = read_plain(tmp_path / "runs" / Path(overlay).stem / "checkpoints" / "last.ckpt")
    (state,) = saved["optimizer_states"]
    assert saved["global_step"] == 2
    if overlay == OVERLAYS[-1]:
        assert state["param_groups"][0]["train_mode"]
        assert state["param_groups"][0]["k"] == 2
    else:
        assert state["state"][0]["step"] == 2


def test_prodigy_counts_where_it_began() -> None:
    held = optimizer_bytes(OPTIMIZERS["Prodigy"], [nn.Parameter(torch.zeros(512, 512))])
    assert held == 16 * 512 * 512


def test_schedule_free_refuses_a_second_average() -> None:
    trainer = quiet_trainer(1, num_sanity_val_steps=0, callbacks=[AveragedOptimizer(), EMA(0.9)])
    with pytest.raises(ValueError, match=r"AdamWScheduleFree, which averages the weights itself.*EMA: null"):
        trainer.fit(module(optimizer=OPTIMIZERS["AdamWScheduleFree"]), loader(), loader(100))


def test_the_estimate_knows_8_bits() -> None:
    def state(make: Callable[[list[Tensor]], Any]) -> int:
        found = optimizer_bytes(make, [nn.Parameter(torch.zeros(256, 256))])
        assert found is not None
        return found

    assert state(torch.optim.AdamW) == 8 * 65536 + 4
    assert state(bitsandbytes.optim.AdamW8bit) == pytest.approx(2 * 65536, rel=0.06), "and a scale each 256 values"
    assert state(OPTIMIZERS["AdamWScheduleFree"]) == 8 * 65536
