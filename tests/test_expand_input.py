"""A grown model computes at step 0, bit for bit, what its base model does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import UNet2DModel, ZImageTransformer2DModel
from torch import Tensor, nn

from inpaint_module import base_models
from inpaint_module.base_models import Layout, check_input_channels, grow_input_channels, pack
from inpaint_module.encoder import InpaintLatents

HEIGHT, WIDTH = 8, 4  # of the latents
TEXT = {"encoder_hidden_states": torch.randn(2, 4, tiny.TEXT, generator=torch.Generator().manual_seed(3))}
POOLED = {"pooled_projections": TEXT["encoder_hidden_states"][:, 0]}
STEP = {"timestep": torch.tensor([10.0, 500.0])}
SIGMA = {"timestep": torch.tensor([0.01, 0.5])}


def position_ids(tokens: int) -> Tensor:
    return torch.arange(tokens * 3).reshape(tokens, 3).float()


class Case(NamedTuple):
    """A base model, the layout that it grows to, its other inputs, and how its own input is packed."""

    base: Callable[[], nn.Module]
    channels: int
    layout: Layout
    first_layer: str
    arguments: dict[str, Any]
    packed: Callable[[Tensor], Tensor] = torch.Tensor.contiguous


def unet_2d(in_channels: int = 3) -> UNet2DModel:
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DModel(in_channels=in_channels, out_channels=3, **blocks, **sizes).eval()


CASES = {
    "UNet2DModel": Case(unet_2d, 3, base_models.LatentDiffusionLayout(), "conv_in", STEP),
    "UNet2DConditionModel": Case(tiny.unet, 4, base_models.StableDiffusionLayout(), "conv_in", STEP | TEXT),
    "SD3Transformer2DModel": Case(
        tiny.sd3_transformer, 16, base_models.StableDiffusion3Layout(), "pos_embed.proj", STEP | TEXT | POOLED
    ),
    "FluxTransformer2DModel": Case(
        tiny.flux_transformer,
        16,
        base_models.FluxFillLayout(),
        "x_embedder",
        SIGMA | TEXT | POOLED | {"img_ids": position_ids(HEIGHT * WIDTH // 4), "txt_ids": position_ids(4)},
        pack,
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def batch(case: Case) -> tuple[Tensor, InpaintLatents]:
    generator = torch.Generator().manual_seed(2)
    noisy, samples = (torch.randn(2, case.channels, HEIGHT, WIDTH, generator=generator) for _ in range(2))
    return noisy, InpaintLatents(samples, torch.randint(2, (2, 1, 8 * HEIGHT, 8 * WIDTH), generator=generator).float())


def grown(case: Case) -> nn.Module:
    return grow_input_channels(case.base(), case.layout.in_channels(case.channels))


@torch.no_grad()
def run(model: nn.Module, x: Tensor, arguments: dict[str, Any]) -> Tensor:
    cast = {name: value.to(x) if torch.is_tensor(value) else value for name, value in arguments.items()}
    return model(x, **cast).sample


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_output_at_step_0_is_the_base_models(case: Case, dtype: torch.dtype, device: str) -> None:
    noisy, latents = batch(case)
    noisy = noisy.to(device, dtype)
    before = run(case.base().to(device, dtype), case.packed(noisy), case.arguments)
    after = run(grown(case).to(device, dtype), case.layout(noisy, latents), case.arguments)
    assert before.std() > 0
    assert torch.equal(after, before)


@each_case
def test_saving_and_loading_round_trips(case: Case, tmp_path: Path) -> None:
    model, made = grown(case), case.layout(*batch(case))
    with torch.no_grad():
        model.get_submodule(case.first_layer).weight.add_(0.1)  # as if trained
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config.in_channels == made.shape[2 if made.ndim == 3 else 1]
    assert loaded.state_dict().keys() == case.base().state_dict().keys()
    torch.testing.assert_close(
        run(loaded, made, case.arguments), run(model, made, case.arguments), rtol=1e-4, atol=1e-5
    )


@each_case
def test_new_channels_start_at_zero_and_train(case: Case) -> None:
    model, base = grown(case), case.base()
    weight, old = (m.get_submodule(case.first_layer).weight for m in (model, base))
    assert torch.equal(weight[:, : old.shape[1]], old)
    assert not weight[:, old.shape[1] :].any()
    model(case.layout(*batch(case)), **case.arguments).sample.square().sum().backward()
    assert weight.grad[:, old.shape[1] :].any(1).all()


@each_case
def test_growing_again_changes_nothing(case: Case) -> None:
    model = grown(case)
    layer = model.get_submodule(case.first_layer)
    grow_input_channels(model, case.layout.in_channels(case.channels))
    assert model.get_submodule(case.first_layer) is layer


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 2, stride=2, bias=False), nn.Linear(4, 6)]
)
def test_a_grown_layer_equals_a_plain_one_of_its_weights(layer: nn.Conv2d | nn.Linear) -> None:
    model = nn.Module()
    model.conv_in = copy.deepcopy(layer).requires_grad_(False)
    made = grow_input_channels(model, 9, base=4).conv_in
    generator = torch.Generator().manual_seed(0)
    made.weight.normal_(generator=generator)
    is_conv = isinstance(layer, nn.Conv2d)
    x = torch.randn((2, 9, 6, 8) if is_conv else (2, 5, 9), generator=generator)
    if is_conv:
        plain = nn.functional.conv2d(x, made.weight, made.bias, layer.stride, layer.padding)
    else:
        plain = nn.functional.linear(x, made.weight, made.bias)
    torch.testing.assert_close(made(x), plain)
    assert not made.weight.requires_grad


def test_growing_draws_no_random_numbers() -> None:
    model, state = unet_2d(), torch.get_rng_state()
    grow_input_channels(model, 7)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_with_other_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"conv_in: expected the 4 .* or the 9 of the layout, got 8; .* pass base=8"):
        grow_input_channels(tiny.unet(8), 9)
    with pytest.raises(ValueError, match=r"UNet2DModel\.conv_in has 3 input channels, more than 2"):
        grow_input_channels(unet_2d(), 2)
    assert grow_input_channels(tiny.unet(8), 17, base=8).config.in_channels == 17


@pytest.mark.parametrize("model", [nn.Linear(4, 4), "ZImageTransformer2DModel"])
def test_a_model_without_a_known_first_layer_is_refused(model: nn.Module | str) -> None:
    if isinstance(model, str):
        sizes = {"dim": 16, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
        model = ZImageTransformer2DModel(**sizes, cap_feat_dim=8, axes_dims=[4, 2, 2])
    with pytest.raises(ValueError, match="has no first layer that can grow: expected a Conv2d or Linear named conv_in"):
        grow_input_channels(model, 33)
    check_input_channels(model, 33)


def test_a_denoiser_with_too_few_channels_is_told_the_way() -> None:
    with pytest.raises(ValueError, match=r"expected 9 channels, got 4; .*grow_input_channels\(denoiser, 9\)"):
        check_input_channels(tiny.unet(), 9)
    check_input_channels(grow_input_channels(tiny.unet(), 9), 9)
