"""LoRA: what trains, what is saved, and what a pipeline makes of it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from inpaint_module.base_models import (
    LoRA,
    add_lora,
    grow_input_channels,
    has_lora,
    lora_weights,
    remove_lora,
    trains_first_layer,
)
from inpaint_module.base_models.lora import FROZEN_SHA256

TEXT = torch.randn(2, 4, tiny.TEXT, generator=torch.Generator().manual_seed(3))


def denoiser(rank: int = 2, **options: Any) -> UNet2DConditionModel:
    return add_lora(tiny.unet(9), LoRA(rank, **options))


def answer(model: UNet2DConditionModel, channels: int = 9) -> Tensor:
    x = torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(5))
    return model(x.to(model.dtype), torch.tensor([10, 500]), TEXT.to(model.dtype)).sample


def trained(model: UNet2DConditionModel, steps: int = 2) -> UNet2DConditionModel:
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-1)
    for _ in range(steps):
        optimizer.zero_grad()
        answer(model, model.config.in_channels).square().mean().backward()
        optimizer.step()
    return model


def names(model: UNet2DConditionModel) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_step_0_is_the_base_models_to_the_bit() -> None:
    assert torch.equal(answer(denoiser()), answer(tiny.unet(9)))


def test_the_factors_alone_train() -> None:
    model = denoiser()
    assert names(model)
    assert all("lora_" in name for name in names(model))
    before = {name: value.clone() for name, value in model.named_parameters()}
    trained(model)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == names(model)


@pytest.mark.parametrize(("chosen", "expected"), [(None, True), (True, True), (False, False)])
def test_the_first_layer_of_a_grown_model_trains_too(chosen: bool | None, expected: bool) -> None:
    model = add_lora(grow_input_channels(tiny.unet(4), 9), LoRA(2, train_first_layer=chosen))
    assert trains_first_layer(model) is expected
    assert {"conv_in.weight", "conv_in.bias"} <= names(model) or not expected
    assert not trains_first_layer(denoiser())


def test_rank_alpha_and_targets() -> None:
    model = denoiser(3, alpha=6, target_modules=["to_q"])
    assert all(".to_q.lora_" in name for name in names(model))
    assert {len(weight) for name, weight in lora_weights(model).items() if "lora_A" in name} == {3}
    assert model.peft_config["default"].lora_alpha == 6


def test_the_start_is_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    first = lora_weights(denoiser(seed=0))
    torch.manual_seed(2)
    again, other = lora_weights(denoiser(seed=0)), lora_weights(denoiser(seed=1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_state_dict_holds_what_trains_and_loads_strictly() -> None:
    model = trained(denoiser())
    state = model.state_dict()
    assert state.keys() == names(model) | {FROZEN_SHA256}
    again = denoiser()
    again.load_state_dict(state)
    assert torch.equal(answer(again), answer(model))


def test_another_base_model_is_refused() -> None:
    state = denoiser().state_dict()
    other = tiny.unet(9)
    with torch.no_grad():
        other.conv_out.weight += 1e-3
    with pytest.raises(ValueError, match=r"trained on a base model whose frozen weights have sha256 .* load the same"):
        add_lora(other, LoRA(2)).load_state_dict(state)


def test_a_missing_factor_is_no_frozen_weight() -> None:
    model = denoiser()
    state = model.state_dict()
    lost = next(iter(names(model)))
    del state[lost]
    with pytest.raises(RuntimeError, match="Missing key"):
        denoiser().load_state_dict(state)


def test_copies_save_their_own_factors() -> None:
    model = denoiser()
    twin = copy.deepcopy(model)
    trained(twin)
    name = next(name for name in names(model) if "lora_B" in name)
    assert torch.equal(twin.state_dict()[name], twin.get_parameter(name))
    assert not torch.equal(twin.state_dict()[name], model.state_dict()[name])
    state = model.state_dict()
    twin.load_state_dict(state)
    assert torch.equal(twin.get_parameter(name), model.get_parameter(name))


def test_what_trains_is_float32_beside_bfloat16_and_learns_in_mixed_precision() -> None:
    model = add_lora(grow_input_channels(tiny.unet(4).to(torch.bfloat16), 9), LoRA(2))
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        trained(model)
        assert answer(model).isfinite().all()
    assert any(weight.any() for name, weight in model.named_parameters() if "lora_B" in name)


def test_removed_it_is_the_base_model_and_fused_it_answers_alike() -> None:
    model = trained(denoiser(alpha=5))
    expected = answer(model)
    plain, fused = remove_lora(copy.deepcopy(model)), remove_lora(copy.deepcopy(model), fuse=True)
    base = tiny.unet(9)
    assert torch.equal(answer(plain), answer(base))
    torch.testing.assert_close(answer(fused), expected, rtol=1e-4, atol=1e-5)
    for each in (plain, fused):
        assert not has_lora(each)
        assert each.state_dict().keys() == base.state_dict().keys()


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"lora.rank: expected at least 1, got 0"):
        LoRA(0)
    with pytest.raises(ValueError, match=r"lora.target_modules: expected ends of names of layers, got \['to_x'\]"):
        denoiser(target_modules=["to_x"])
    with (
        mock.patch.dict(sys.modules, {"peft": None}),
        pytest.raises(ValueError, match="lora needs peft: pip install"),
    ):
        denoiser()


def kohya(weights: dict[str, Tensor], alpha: float | None, name: Callable[[str], str] = str) -> dict[str, Tensor]:
    """Factors as sd-scripts writes them."""
    state = {}
    for key, value in weights.items():
        layer, _, factor = key.partition(".lora_")
        begin = f"lora_unet_{name(layer).replace('.', '_')}"
        state[f"{begin}.lora_{'down' if factor.startswith('A') else 'up'}.weight"] = value
        if alpha is not None:
            state[f"{begin}.alpha"] = torch.tensor(alpha)
    return state


def in_original_names(layer: str) -> str:
    """Of the tiny U-Net, counted by hand: a block is one layer and one sampler, and its second up block attends."""
    for new, old in (
        ("down_blocks.0.attentions.0", "input_blocks.1.1"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("up_blocks.1.attentions.0", "output_blocks.2.1"),
        ("up_blocks.1.attentions.1", "output_blocks.3.1"),
    ):
        layer = layer.replace(new, old)
    return layer


def old_diffusers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As diffusers wrote them in 2023."""
    state = {}
    for key, value in weights.items():
        layer, _, factor = key.partition(".lora_")
        attention, _, projection = layer.removesuffix(".0").rpartition(".")
        way = "down" if factor.startswith("A") else "up"
        state[f"unet.{attention}.processor.{projection}_lora.{way}.weight"] = value
    return state


NAMINGS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "diffusers": lambda weights: {f"unet.{name}": value for name, value in weights.items()},
    "diffusers of 2023": old_diffusers,
    "a denoiser alone": dict,
    "PEFT": lambda weights: {f"base_model.model.{name}": value for name, value in weights.items()},
    "kohya": lambda weights: kohya(weights, 2.0),
    "kohya without alpha": lambda weights: kohya(weights, None),
    "kohya of XL": lambda weights: kohya(weights, 2.0, in_original_names),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_file_of_factors_is_gone_on_from(naming: str, tmp_path: Path) -> None:
    """With its answer to the bit: rank 2, alpha 2."""
    model = trained(denoiser(train_first_layer=False))
    save_file(NAMINGS[naming](lora_weights(model)), tmp_path / "a.safetensors")
    again = denoiser(start=str(tmp_path / "a.safetensors"), train_first_layer=False)
    assert torch.equal(answer(again), answer(model))
    assert names(again) == names(model)
    assert not torch.equal(answer(trained(again, 1)), answer(model))


def test_what_a_file_scales_by_is_kept(tmp_path: Path) -> None:
    """Alpha 1 of rank 2 halves the product, whatever alpha is here."""
    model = trained(denoiser(alpha=1, train_first_layer=False))
    save_file(kohya(lora_weights(model), 1.0), tmp_path / "a.safetensors")
    again = denoiser(alpha=4, start=str(tmp_path / "a.safetensors"), train_first_layer=False)
    torch.testing.assert_close(answer(again), answer(model))
    model.save_lora_adapter(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    torch.testing.assert_close(answer(denoiser(start=str(file), train_first_layer=False)), answer(model))


def test_factors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    weights, file = lora_weights(denoiser()), tmp_path / "a.safetensors"
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"lora.rank: expected 2, as down_blocks.* has in .*a.safetensors', got 4"):
        denoiser(rank=4, start=str(file))
    with pytest.raises(ValueError, match=r"lora.start: expected factors of layers .* got others .*to_q, .* in all"):
        denoiser(target_modules=["to_k"], start=str(file))
    save_file({name.replace("down_blocks", "other"): value for name, value in weights.items()}, file)
    with pytest.raises(ValueError, match=r"lora.start: .* got others in .*other.0"):
        denoiser(start=str(file))
    flux = "lora_unet_double_blocks_0_img_attn_qkv"  # query, key and value in one, as Flux's own code names them
    save_file({f"{flux}.lora_down.weight": torch.zeros(2, 8), f"{flux}.lora_up.weight": torch.zeros(24, 2)}, file)
    with pytest.raises(ValueError, match=rf"lora.start: .* got others in .*{flux}, 1 in all"):
        denoiser(start=str(file))
    save_file({"lora_te_x.lora_down.weight": torch.zeros(2, 2)}, file)
    with (
        pytest.warns(UserWarning, match="has factors of text encoders too"),
        pytest.raises(ValueError, match=r"expected factors of the denoiser in .* got none"),
    ):
        denoiser(start=str(file))
    file.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"lora.start: expected a file of LoRA factors alone at .*a.safetensors"):
        denoiser(start=str(file))


@pytest.mark.parametrize("naming", ["kohya", "ComfyUI"])
def test_flux_factors_of_query_key_and_value_in_one_are_split(naming: str, tmp_path: Path) -> None:
    generator, file = torch.Generator().manual_seed(0), tmp_path / "a.safetensors"
    expected: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for fused, names in (
        ("img_attn.qkv", ("to_q", "to_k", "to_v")),
        ("txt_attn.qkv", ("add_q_proj", "add_k_proj", "add_v_proj")),
    ):
        transformer = tiny.flux_transformer(64, 64)
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        down, up = (torch.randn(shape, generator=generator) for shape in ((2, width), (3 * width, 2)))
        for number, name in enumerate(names):
            rows = up[number * width : (number + 1) * width]
            expected[f"transformer_blocks.0.attn.{name}"] = rows @ down * 0.5  # alpha 1 of rank 2
        layer, ends = f"diffusion_model.double_blocks.0.{fused}", ("lora_A", "lora_B")
        if naming == "kohya":
            layer, ends = f"lora_unet_double_blocks_0_{fused.replace('.', '_')}", ("lora_down", "lora_up")
        state |= {
            f"{layer}.{ends[0]}.weight": down,
            f"{layer}.{ends[1]}.weight": up,
            f"{layer}.alpha": torch.tensor(1.0),
        }
    save_file(state, file)
    targets = [name.rpartition(".")[2] for name in expected]
    with pytest.warns(UserWarning, match="begin anew"):  # those of the blocks that the file lacks
        add_lora(transformer, LoRA(2, target_modules=targets, start=str(file)))
    for name, product in expected.items():
        layer = transformer.get_submodule(name)
        found = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
        torch.testing.assert_close(found, product)


def test_layers_that_the_file_lacks_begin_anew(tmp_path: Path) -> None:
    save_file(lora_weights(denoiser(target_modules=["to_q"])), tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match=r"has no factors of 8 of 16 layers, such as .*to_k: they begin anew"):
        denoiser(target_modules=["to_q", "to_k"], start=str(tmp_path / "a.safetensors"))
