"""A base model in 4 or 8 bits under a LoRA: it trains, is resumed, and is exported plain."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxFillPipeline
from quiet_trainer import QUIET, quiet_trainer
from tiny_folders import flux, saved
from tiny_models import tiny_batch
from torch import nn
from torch.utils.data import DataLoader
from two_ranks import Batches, equal, weights

from inpaint_module.base_models import BaseModel, LoRA, TextOptions, dequantize, quantize, quantized_state
from inpaint_module.base_models.quantize import KINDS
from inpaint_module.export import export
from inpaint_module.training.averages import EMA
from inpaint_module.training.checkpoints import VerifiedCheckpointIO
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.memory import held_memory
from inpaint_module.weights import without_weights

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt.*"),
]

SOME = [pytest.param(kind, marks=[pytest.mark.slow] if kind == "float8wo" else []) for kind in KINDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(flux(), tmp_path_factory.mktemp("flux"))


def model_of(folder: str, kind: str | None, text: str | None = None) -> InpaintDiffusion:
    options = TextOptions(dtype="bfloat16", quantize=text)
    base = BaseModel(folder, dtype="bfloat16", lora=LoRA(4), quantize=kind, text=options)
    return InpaintDiffusion(base, optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-2))


def fit(model: InpaintDiffusion, steps: int, path: Path | None = None, *callbacks: Any) -> Any:
    plugins = [VerifiedCheckpointIO()]
    options: dict[str, Any] = {"precision": "bf16-mixed", "limit_val_batches": 0, "num_sanity_val_steps": 0}
    trainer = quiet_trainer(steps, callbacks=list(callbacks), plugins=plugins, **options)
    start = 0 if path is None else 2
    loader = DataLoader(Batches(start, 0, 1), batch_size=None)
    trainer.fit(model, loader, loader, ckpt_path=path)
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_come_back_near_and_sizes_shrink(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(64, 128)]), "head": nn.Linear(64, 4)})
    before = model["blocks"][0].weight.detach().clone()  # type: ignore[index]
    quantize(model, kind)
    layer: Any = model["blocks"][0]  # type: ignore[index]
    assert layer.weight.numel() * layer.weight.element_size() == before.numel() // (2 if kind == "nf4" else 1)
    assert type(model["head"]) is nn.Linear
    told = layer(torch.eye(64))
    dequantize(model)
    after = model["blocks"][0].weight.detach()  # type: ignore[index]
    # the widest step of nf4 is 0.31 of the largest number, of int8 1/127
    step = {"nf4": 0.16, "float8wo": 0.04}.get(kind, 0.005)  # of float8, with 3 bits behind the point, half of 1/8
    assert (after - before).abs().max() < step * before.abs().max()
    bias = model["blocks"][0].bias  # type: ignore[index]
    torch.testing.assert_close(told, (after.T + bias).to(told), rtol=2e-2, atol=2e-3)
    assert not quantized_state(model)


@pytest.mark.parametrize("kind", SOME)
def test_a_resumed_run_ends_with_the_same_bits(kind: str, folder: str, tmp_path: Path) -> None:
    whole = model_of(folder, kind)
    trainer = fit(whole, 2)
    trainer.save_checkpoint(tmp_path / "2.ckpt")
    assert (tmp_path / "2.ckpt").stat().st_size < 400_000, "factors alone"
    third = model_of(folder, kind)
    fit(third, 4)
    resumed = model_of(folder, kind)
    fit(resumed, 4, tmp_path / "2.ckpt")
    assert equal(weights(third), weights(resumed))
    with pytest.raises(ValueError, match="trained on a base model whose frozen weights"):
        fit(model_of(folder, None), 4, tmp_path / "2.ckpt")


@pytest.mark.parametrize("kind", ["int8wo", "float8wo"])
def test_rows_by_hand_and_what_the_backward_pass_holds(kind: str) -> None:
    layer = nn.Linear(2, 3, bias=False)
    layer.weight.data = torch.tensor([[255.0, -2.0], [0.0, 0.0], [0.875, 0.125]])
    model = nn.ModuleDict({"blocks": nn.ModuleList([layer])})
    quantize(model, kind)
    made: Any = model["blocks"][0]  # type: ignore[index]
    expected = {
        "int8wo": [[254.0, -2.0], [0.0, 0.0], [127 * 0.875 / 127.5, 18 * 0.875 / 127.5]],  # 127.5 and 18.2, rounded
        "float8wo": [[255.0, -3.5 * 255 / 448], [0.0, 0.0], [0.875, 0.125]],  # 3.514 -> 3.5
    }[kind]
    torch.testing.assert_close(made.plain_weight(), torch.tensor(expected))
    held: list[torch.Tensor] = []
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda each: held.append(each) or each, lambda each: each):  # type: ignore[func-returns-value]
        told = made(x)
    assert not held, "the codes alone, by the layer"
    told.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor(expected).sum(0, keepdim=True))
    x = torch.ones(1, 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert made(x).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("kind", "name"), [("int8wo", "Int8WeightOnlyConfig"), ("float8wo", "Float8WeightOnlyConfig")])
def test_rows_are_torchaos(kind: str, name: str) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    torch.manual_seed(0)
    layer = nn.Linear(64, 128)
    theirs, model = nn.Sequential(copy.deepcopy(layer)), nn.ModuleDict({"blocks": nn.ModuleList([layer])})
    torchao.quantize_(theirs, getattr(torchao, name)())
    quantize(model, kind)
    ours: Any = model["blocks"][0]  # type: ignore[index]
    torch.testing.assert_close(ours.plain_weight(), theirs[0].weight.dequantize(), rtol=0, atol=0)


def test_scales_are_part_of_the_fingerprint() -> None:
    from inpaint_module.base_models.lora import frozen_sha256

    digests = set()
    for scale in (1, 2):
        torch.manual_seed(0)
        model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(64, 64, bias=False)])}).requires_grad_(False)
        model["blocks"][0].weight.mul_(scale)  # type: ignore[index]
        quantize(model, "nf4")
        digests.add(frozen_sha256(model))
    assert len(digests) == 2, "their codes are the same"


def test_the_average_holds_what_is_frozen_once(folder: str) -> None:
    model, ema = model_of(folder, "nf4"), EMA(0.5)
    before = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    fit(model, 3, None, ema)
    average: Any = ema._average_model
    shared = dict(average.module.named_parameters())
    for name, value in model.named_parameters():
        assert (shared[name] is value) == (not value.requires_grad), name
        assert value.requires_grad or torch.equal(value, before[name]), name


def test_export_is_plain_and_computes_the_same(folder: str, tmp_path: Path) -> None:
    model = model_of(folder, "nf4", text="nf4")
    for name, value in model.denoiser.named_parameters():
        if "lora_B" in name:
            value.data.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    batch: Any = tiny_batch(1, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        told = model.loss(batch)
    export(model, tmp_path / "out", fuse=True)
    pipeline = FluxFillPipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.bfloat16)
    assert {type(each) for each in pipeline.transformer.modules() if isinstance(each, nn.Linear)} == {nn.Linear}
    again = InpaintDiffusion(BaseModel(str(tmp_path / "out"), dtype="bfloat16", text=TextOptions(dtype="bfloat16")))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(again.loss(batch), told, rtol=0.02, atol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind: str, folder: str) -> None:
    model, ema = model_of(folder, kind, text=kind), EMA(0.5)
    options: dict[str, Any] = {"accelerator": "gpu", "devices": 1, "precision": "bf16-mixed"}
    options |= {"limit_val_batches": 0, "num_sanity_val_steps": 0, "callbacks": [ema]}
    batches = DataLoader(Batches(0, 0, 1), batch_size=None)
    quiet_trainer(2, **options).fit(model, batches, batches)
    average: Any = ema._average_model
    shared = dict(average.module.named_parameters())
    for name, value in model.named_parameters():
        assert (shared[name].data_ptr() == value.data_ptr()) == (not value.requires_grad), name


@pytest.mark.parametrize("kind", SOME)
def test_the_estimate_counts_bits(kind: str, folder: str) -> None:
    real = held_memory(model_of(folder, kind, text=kind))
    with without_weights():
        known = held_memory(model_of(folder, kind, text=kind))
    # tables of codes and of scales count in tiny layers alone
    assert known.weights == pytest.approx(real.weights, rel=0.6)
    assert known.weights < held_memory(model_of(folder, None)).weights


def test_mistakes_are_named(folder: str) -> None:
    with pytest.raises(ValueError, match=r"base.quantize: expected null, or base.lora beside it"):
        BaseModel(folder, quantize="nf4")
    with pytest.raises(ValueError, match="quantize must be null or one of nf4, int8, int8wo, float8wo; got 'int3'"):
        BaseModel(folder, quantize="int3", lora=LoRA(4))
    with pytest.raises(ValueError, match="expected linear layers in blocks, got none in Conv2d"):
        quantize(nn.Conv2d(1, 1, 1), "nf4")
