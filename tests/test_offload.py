"""Frozen weights on the CPU between uses: the same bits, sent for each use, given up after it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet_trainer import QUIET
from test_quantize import fit
from tiny_folders import flux, saved, stable_diffusion
from tiny_models import tiny_batch, tiny_module
from torch import Tensor, nn
from two_ranks import equal, weights

from inpaint_module import weights as places
from inpaint_module.base_models import BaseModel, LoRA
from inpaint_module.export import export
from inpaint_module.training.averages import EMA
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.memory import held_memory
from inpaint_module.weights import without_weights

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(flux(), tmp_path_factory.mktemp("flux"))


def model_of(folder: str, offload: bool | str, **options: Any) -> InpaintDiffusion:
    torch.manual_seed(0)
    base = BaseModel(folder, **{"lora": LoRA(4), "gradient_checkpointing": True, "dtype": "bfloat16"} | options)
    return InpaintDiffusion(base, offload=offload, optimizer=lambda weights: torch.optim.AdamW(weights, lr=1e-2))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """As if the CPU were a GPU: what is brought is a copy; counted by where it is at home."""
    counts: Counter[int] = Counter()

    def is_away(weight: Tensor, device: torch.device) -> bool:
        # a copy is no home
        if weight.data_ptr() in copies:
            return False
        counts[weight.data_ptr()] += 1
        return True

    def send(home: Tensor, device: torch.device) -> Tensor:
        made = home.clone()
        copies.add(made.data_ptr())
        held.append(made)  # so that its place is not taken again
        return made

    copies: set[int] = set()
    held: list[Tensor] = []
    monkeypatch.setattr(places, "_is_away", is_away)
    monkeypatch.setattr(places, "_sent", send)
    return counts


@pytest.mark.parametrize("offload", [True, "blocks"])
def test_the_same_bits(offload: bool | str, folder: str, sent: Counter[int]) -> None:
    plain, module = model_of(folder, False), model_of(folder, offload)
    trained = fit(plain, 2) and weights(plain)
    sent.clear()
    homes = {each.data_ptr() for each in module.encoder.vae.models()[0].parameters()}
    homes |= {each.data_ptr() for model in module.conditioning.models() for each in model.parameters()}
    fit(module, 2)
    assert equal(trained, weights(module))
    frozen = [each.weight for each in module.denoiser.transformer_blocks.modules() if type(each) is nn.Linear]
    frozen = [each for each in frozen if not each.requires_grad]
    assert homes & set(sent), "VAE and text encoders are sent"
    assert all(each.data_ptr() in sent for each in frozen) == (offload == "blocks")
    assert not {each.data_ptr() for each in module.optimized()} & set(sent)


def test_a_block_is_sent_again_for_its_backward_pass(folder: str, sent: Counter[int]) -> None:
    module, batch = model_of(folder, "blocks"), dict(tiny_batch(1, 32, 32))
    block = module.denoiser.transformer_blocks[0]
    home = block.ff.net[2].weight if hasattr(block.ff.net[2], "weight") else block.ff.net[2].base_layer.weight
    where = home.data_ptr()
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.loss(batch)  # type: ignore[arg-type]
    assert sent[where] == 1
    assert home.data_ptr() == where, "given up after its use"
    loss.backward()
    assert sent[where] == 2
    assert home.data_ptr() == where


def test_a_move_passes_over_frozen_layers_and_keeps_their_dtype(folder: str) -> None:
    module = model_of(folder, "blocks")
    block = module.denoiser.transformer_blocks[0]
    layer = block.attn.to_q.base_layer
    module.denoiser._apply(lambda each: each.to("meta"))
    assert layer.weight.device.type == "cpu"
    assert {each.device.type for each in block.parameters() if each.requires_grad} == {"meta"}
    assert module.denoiser.proj_out.weight.device.type == "meta", "what is outside of blocks moves"
    layer._apply(lambda each: each.double())
    assert layer.weight.dtype == torch.float64


def test_the_base_beside_a_controlnet(sent: Counter[int], tmp_path: Path) -> None:
    folder, found = saved(stable_diffusion(), tmp_path), []
    for offload in (False, "blocks"):
        torch.manual_seed(0)
        base = BaseModel(folder, "controlnet", gradient_checkpointing=True)
        module = InpaintDiffusion(base, offload=offload)
        sent.clear()
        loss = module.loss(tiny_batch(1, 64, 64))  # type: ignore[arg-type]
        layer = base.control.base.model.mid_block.resnets[0].conv1  # type: ignore[union-attr]
        deep = base.control.base.model.up_blocks[0].resnets[0].conv1.weight  # type: ignore[union-attr]
        once = sent[deep.data_ptr()]
        loss.backward()
        assert (once, sent[deep.data_ptr()]) == ((1, 2) if offload else (0, 0)), "a U-Net checkpoints parts of blocks"
        assert layer.weight.data_ptr() not in sent, "no block of a list: it stays"
        found.append([each.grad.clone() for each in module.optimized() if each.grad is not None])
    assert found[0]
    assert all(map(torch.equal, *found))


def test_a_run_is_resumed_and_exported(folder: str, tmp_path: Path) -> None:
    whole = model_of(folder, "blocks")
    fit(whole, 2).save_checkpoint(tmp_path / "2.ckpt")
    third, resumed, without = (model_of(folder, each) for each in ("blocks", "blocks", False))
    fit(third, 4, None, EMA(0.5))
    fit(resumed, 4, tmp_path / "2.ckpt")
    fit(without, 4, tmp_path / "2.ckpt")
    assert equal(weights(resumed), weights(without)), "another setting goes on"
    export(resumed, tmp_path / "out")
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").is_file()


def test_what_cannot_be_offloaded_is_refused(folder: str) -> None:
    with pytest.raises(ValueError, match="offload must be true, false or blocks; got 'all'"):
        tiny_module(offload="all")
    with pytest.raises(ValueError, match=r"where all weights train, got blocks: give base\.lora"):
        tiny_module(offload="blocks")
    with pytest.raises(ValueError, match=r"needs base\.gradient_checkpointing: true"):
        model_of(folder, "blocks", gradient_checkpointing=False)
    with pytest.raises(ValueError, match="where the base is quantized"):
        model_of(folder, "blocks", quantize="nf4")
    base = BaseModel(folder, lora=LoRA(4), gradient_checkpointing=True)
    with pytest.raises(ValueError, match="where the denoiser is compiled"):
        InpaintDiffusion(base, offload="blocks", compile=True)


def test_the_estimate_knows_what_is_on_the_cpu(folder: str) -> None:
    with without_weights():
        plain, some, blocks = (held_memory(model_of(folder, each)) for each in (False, True, "blocks"))
    assert (some.vae, some.text, some.visiting) == (0, 0, max(plain.vae, plain.text))
    assert some.weights == plain.weights
    assert blocks.weights < plain.weights
    assert blocks.visiting >= some.visiting


@pytest.mark.cuda
@pytest.mark.parametrize("offload", [True, "blocks"])
def test_on_a_gpu_it_is_the_same_loss_with_less_memory(offload: bool | str, folder: str) -> None:
    found = []
    for each in (False, offload):
        module = model_of(folder, each).cuda()
        on_device = {name: v.cuda() if isinstance(v, Tensor) else v for name, v in tiny_batch(1, 32, 32).items()}
        held = torch.cuda.memory_allocated()
        with torch.autocast("cuda", torch.bfloat16):
            loss = module.loss(on_device)  # type: ignore[arg-type]
        loss.backward()
        found.append((loss.item(), held))
        assert all(weight.grad is not None for weight in module.optimized())
        del module, loss
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[1][1] < found[0][1]
