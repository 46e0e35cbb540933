"""`speed`: what is chosen where the user has said nothing, and that `exact` and `off` change no bit on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from quiet_trainer import QUIET
from tiny_models import tiny_batch, tiny_module
from tiny_run import Setup, tiny_config
from torch import nn

import train
from datamodules import MaskOptions, WebDatasetDataModule
from inpaint_module import load_vae
from inpaint_module.masks import Boxes, CudaGraphed, Full, MaskGenerator, Union
from inpaint_module.training import speed as speeds
from inpaint_module.training.checkpoints import read_plain
from inpaint_module.training.memory import model_bytes
from inpaint_module.training.optimization import fuse
from inpaint_module.training.speed import Speed, choose
from inpaint_module.weights import without_weights

pytestmark = QUIET
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def chosen(setting: str, device: torch.device, native: bool = True, model: Any = None, **trainer: Any) -> Speed:
    model = tiny_module() if model is None else model
    with mock.patch.object(speeds, "native_bfloat16", return_value=native):
        return choose(setting, model, device, {"precision": None, "strategy": "auto", "plugins": None} | trainer)


def test_what_each_setting_chooses() -> None:
    assert chosen("auto", GPU) == Speed("bf16-mixed", vae=True, graphs=True, fused=True, tf32=True)
    assert chosen("auto", CPU) == Speed("bf16-mixed", vae=True, graphs=False, fused=True, tf32=False)
    assert chosen("auto", CPU, native=False) == Speed()
    assert chosen("exact", GPU) == Speed(graphs=True)
    assert chosen("exact", CPU) == chosen("off", GPU) == chosen("off", CPU) == Speed()
    older = chosen("auto", GPU, native=False)  # a card without bfloat16
    assert older == Speed(graphs=True, fused=True, tf32=True)


@pytest.mark.parametrize("precision", ["32-true", "32", 32])
def test_float32_that_the_user_named_stays(precision: Any) -> None:
    assert chosen("auto", GPU, precision=precision) == Speed(graphs=True, fused=True, tf32=True)


def test_the_vae_follows_a_precision_that_the_user_named() -> None:
    assert chosen("auto", CPU, native=False, precision="bf16-mixed") == Speed(vae=True)
    assert chosen("auto", GPU, precision="16-mixed") == Speed(graphs=True, tf32=True)  # its scaler clips none fused
    assert chosen("exact", GPU, precision="bf16-mixed") == Speed(graphs=True)


def test_another_precision_by_a_plugin_or_a_strategy_stays() -> None:
    from lightning.pytorch.plugins import DoublePrecision
    from lightning.pytorch.strategies import ModelParallelStrategy

    for given in (DoublePrecision(), [DoublePrecision()]):
        assert chosen("auto", GPU, plugins=given).precision is None
    sharded = chosen("auto", GPU, strategy=ModelParallelStrategy())
    assert (sharded.precision, sharded.fused) == (None, False)


def test_a_model_of_another_class_is_left_alone() -> None:
    assert chosen("auto", GPU, model=nn.Linear(1, 1)) == Speed()


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="speed: expected one of auto, exact, off; got 'fast'"):
        choose("fast", tiny_module(), CPU, {})


def test_a_vae_whose_dtype_was_named_stays_and_the_other_keeps_its_fingerprint() -> None:
    plain, named = load_vae(), load_vae(dtype="float32")
    before = named.fingerprint()
    for vae, expected in ((plain, torch.bfloat16), (named, torch.float32)):
        vae.compute_in(torch.bfloat16)
        assert vae.dtype == expected  # type: ignore[attr-defined]
        assert vae.fingerprint() == before, "a checkpoint of the one is one of the other"
    latents = plain.encode(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert latents.dtype == torch.float32


def test_the_estimate_counts_the_chosen_dtype() -> None:
    with without_weights():
        vae = load_vae()
        before = model_bytes(vae.models()[0])
        assert vae.compute_in(torch.bfloat16)
    assert model_bytes(vae.models()[0]) == before / 2


class Mine(Full):
    """A generator of a user."""


@pytest.mark.parametrize(
    ("generator", "option", "graphed"),
    [
        (Boxes(), None, True),
        (Boxes(), True, True),
        (Boxes(), False, False),
        (Union([Boxes(), Mine()]), None, False),
        (Mine(), None, False),
    ],
)
def test_only_our_masks_are_graphed_unasked(generator: MaskGenerator, option: bool | None, graphed: bool) -> None:
    data = WebDatasetDataModule(
        "embedded:train", batch_size=2, image_size=64, mask_generator=generator, masks=MaskOptions(cuda_graphs=option)
    )
    data.paint_by_graphs()
    assert isinstance(data.mask_generator, CudaGraphed) == graphed


def test_an_optimizer_is_fused_where_the_user_has_not_said() -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    for made, expected in (
        (torch.optim.AdamW(weights), True),
        (torch.optim.AdamW(weights, fused=False), False),
        (torch.optim.AdamW(weights, foreach=True), None),
        (torch.optim.AdamW(weights, differentiable=True), None),
        (torch.optim.SGD(weights, lr=1.0), True),
        (torch.optim.NAdam(weights), None),  # has none
        (type("Mine", (torch.optim.AdamW,), {})(weights), None),
    ):
        fuse(made)
        assert made.param_groups[0].get("fused") == expected, type(made)
        if not made.defaults.get("differentiable"):
            weights[0].grad = torch.ones(2)
            made.step()


def fit(folder: Path, *options: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    config = tiny_config(Setup(window=1))
    del config["samples"]
    config["trainer"] |= {"max_steps": 2, "limit_train_batches": 2, "limit_val_batches": 0, "callbacks": []}
    config["trainer"] |= {"default_root_dir": str(folder)}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    with mock.patch.object(sys, "argv", ["train.py", "fit", f"--config={folder / 'tiny.yaml'}", *options]):
        assert train.main() == 0
    return read_plain(next(folder.rglob("*.ckpt")))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


def state_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    weights = {name: each for name, each in checkpoint["state_dict"].items() if isinstance(each, torch.Tensor)}
    return weights | {"data": checkpoint["WebDatasetDataModule"]}


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.*")
def test_on_a_cpu_exact_and_off_end_with_the_same_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    native = mock.patch.object(speeds, "native_bfloat16", return_value=True)
    with native:
        off, exact = (state_of(fit(tmp_path / each, f"--speed={each}")) for each in ("off", "exact"))
        auto = fit(tmp_path / "auto")
    assert off.keys() == exact.keys()
    assert all(torch.equal(off[n], exact[n]) if isinstance(off[n], torch.Tensor) else off[n] == exact[n] for n in off)
    line = "speed: auto on this CPU: bf16-mixed, VAE in bfloat16; --speed off or exact for none of it"
    assert line in caplog.text
    conv = auto["state_dict"]["denoiser.conv_in.weight"]
    assert conv.dtype == torch.float32
    assert not torch.equal(conv, off["denoiser.conv_in.weight"])
    assert auto["WebDatasetDataModule"] == off["data"], "orders and masks are the same"


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_on_another_machine_it_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mock.patch.object(speeds, "native_bfloat16", return_value=True):
        fit(tmp_path / "auto")
    fit(tmp_path / "auto", "--speed=off", "--trainer.max_steps=3")
    assert "resume: " in caplog.text.rpartition("speed: off")[2]
    assert {read_plain(each)["global_step"] for each in tmp_path.glob("auto/**/*.ckpt")} == {3}


def test_how_the_model_is_compiled() -> None:
    for value, mode in ((False, None), (True, "default"), ("reduce-overhead", "reduce-overhead")):
        module = tiny_module(compile=value)
        assert (module.compiled.mode, module.compiled_vae.mode) == (mode, mode and "default")
    with pytest.raises(ValueError, match=r"compile must be true, false or one of default, .*; got 'fast'"):
        tiny_module(compile="fast")


def test_compile_compiles_the_vae_in_training_steps_alone() -> None:
    plain, module, batch = tiny_module(), tiny_module(compile=True), tiny_batch()
    vae: Any = module.encoder.vae
    seen: list[bool] = []
    conv = vae.module.encoder.conv_in
    conv.register_forward_pre_hook(lambda *_: seen.append("encode" in vars(vae.module)))
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(module.loss(batch), plain.loss(batch))
        trained = len(seen)
        module.inpaint(batch)
    assert all(seen[:trained])
    assert not any(seen[trained:])
    assert "encode" not in vars(vae.module)


def test_configs_of_before_say_compile_mode() -> None:
    from inpaint_module.cli.older_configs import today

    old = {"model": {"class_path": "inpaint_module.InpaintDiffusion", "init_args": {"compile_mode": "default"}}}
    assert today(old)["model"]["init_args"] == {"compile": "default"}
    none = {"model": {"init_args": {"compile_mode": None, "seed": 1}}}
    assert today(none)["model"]["init_args"] == {"compile": False, "seed": 1}


@pytest.mark.cuda
def test_on_a_gpu_auto_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    made: dict[str, Any] = {
        each: fit(tmp_path / each, f"--speed={each}", "--trainer.accelerator=gpu") for each in ("auto", "exact", "off")
    }
    assert (
        made["exact"]["WebDatasetDataModule"]
        == made["off"]["WebDatasetDataModule"]
        == (made["auto"]["WebDatasetDataModule"])
    )
