"""An export's files under the rules by which ComfyUI knows a file, which are stated here as facts, not as its code.

The rules were read from ComfyUI 0.3.64 and run there on these models: every U-Net and transformer that is said to be
known here was, with all of its tensors, and every LoRA had a patch for each of its layers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import tiny_folders
import tiny_pipelines as tiny
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from inpaint_module import exported_files
from inpaint_module.base_models.lora import ATTENTION

_SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_SD2 = _SD15 | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
_SDXL = {
    "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
}
_SD3 = {
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
_FLUX = {"out_channels": 64, "guidance_embeds": True}
REAL: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "sd15": (UNet2DConditionModel, _SD15),
    "sd2": (UNet2DConditionModel, _SD2),
    "sdxl": (UNet2DConditionModel, _SDXL),
    "sd3": (SD3Transformer2DModel, _SD3),
    "flux": (FluxTransformer2DModel, _FLUX),
}


def real(name: str, channels: int, **config: Any) -> nn.Module:
    """A denoiser of its real sizes, without weights."""
    kind, sizes = REAL[name]
    with torch.device("meta"):
        return kind(**sizes | config, in_channels=channels)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "channels", "known"),
    [
        ("sd15", 9, "as it is"),
        ("sdxl", 9, "as it is"),
        ("flux", 384, "as it is"),
        ("sd15", 4, "as it is"),
        ("sd2", 4, "as it is"),
        ("sd3", 16, "as it is"),
        ("flux", 64, "as it is"),
        ("sd2", 9, "renamed"),  # of U-Nets with 9 channels it knows two by diffusers' names, and this is neither
        ("sd3", 33, None),  # its only SD3 has 16 channels
        ("sd15", 33, None),
        ("flux", 320, None),
    ],
)
def test_what_comfyui_knows_a_denoiser_by(name: str, channels: int, known: str | None) -> None:
    assert exported_files.knows_denoiser(shapes(real(name, channels))) == known


def test_the_tensors_that_comfyui_looks_for() -> None:
    """Names and shapes that its detection reads, in an export's own names: other widths are other models to it."""
    found = {name: shapes(real(name, channels)) for name, channels in (("sdxl", 9), ("flux", 384), ("sd3", 33))}
    assert found["sdxl"]["conv_in.weight"] == (320, 9, 3, 3)
    assert found["sdxl"]["add_embedding.linear_1.weight"][1] == 2816
    assert found["sdxl"]["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1] == 2048
    assert {"down_blocks.2.attentions.1.transformer_blocks.9.norm1.weight"} <= found["sdxl"].keys()
    assert found["flux"]["x_embedder.weight"] == (
        3072,
        4 * 96,
    )  # of 96 it takes 16 for noise, 16 for the image, 64 mask
    assert {"time_text_embed.guidance_embedder.linear_1.weight"} <= found["flux"].keys()
    assert (
        len([name for name in found["flux"] if re.fullmatch(r"transformer_blocks\.\d+\.norm1\.linear\.bias", name)])
        == 19
    )
    assert found["sd3"]["pos_embed.proj.weight"] == (1536, 33, 2, 2)


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
def test_original_names_are_those_that_diffusers_reads(name: str) -> None:
    model = real(name, 9)
    names = exported_files.original_unet_names(list(shapes(model)), 2)
    assert len(set(names.values())) == len(names)
    original = {"model.diffusion_model." + names[key]: value for key, value in model.state_dict().items()}
    again = convert_ldm_unet_checkpoint(original, dict(model.config))
    assert {key: tuple(value.shape) for key, value in again.items()} == shapes(model)
    assert names["conv_in.weight"] == "input_blocks.0.0.weight"  # by this name it knows any number of channels


def factors(model: nn.Module) -> dict[str, torch.Tensor]:
    """LoRA factors for a model of real sizes, without their memory."""
    with torch.device("meta"):
        model.add_adapter(LoraConfig(r=2, target_modules=list(ATTENTION)))  # type: ignore[operator]
    state = get_peft_model_state_dict(model)
    return {name: torch.zeros(1).expand(value.shape) for name, value in state.items()}


@pytest.mark.parametrize(
    ("name", "channels", "layers"),
    [("sd15", 9, 128), pytest.param("sdxl", 9, 560, marks=pytest.mark.slow), ("flux", 384, 266)],
)
def test_comfyui_has_a_place_for_every_layer_of_a_lora(
    name: str, channels: int, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer of a U-Net is lora_unet_ and its name with underscores, one of a transformer transformer. and its name.

    With the prefix unet., as diffusers writes it, ComfyUI knows attention under old names alone: `processor` in them.
    """
    model, written = real(name, channels), {}
    modules = [module for module in dict(model.named_modules()) if module]
    monkeypatch.setattr(exported_files, "_save", lambda state, path: written.update(state))
    unet = isinstance(model, UNet2DConditionModel)
    exported_files.write_lora(factors(model), tmp_path, unet=unet)
    if unet:
        known = {f"lora_unet_{module.replace('.', '_')}" for module in modules}
        ends = {"lora_up.weight", "lora_down.weight", "alpha"}
    else:
        known = {f"transformer.{module}" for module in modules}
        ends = {"lora_A.weight", "lora_B.weight"}
    split = [
        re.fullmatch(r"(.*?)\.(lora_up\.weight|lora_down\.weight|alpha|lora_[AB]\.weight)", key) for key in written
    ]
    assert all(match and match[1] in known and match[2] in ends for match in split)
    assert len({match[1] for match in split if match}) == layers


def test_diffusers_names_of_a_u_nets_lora_mean_nothing_to_comfyui() -> None:
    known = re.compile(r"(lora_unet_|lycoris_|diffusion_model\.)|(unet\.)?(?!unet\.).*\.processor\.")
    names = [f"unet.{name}" for name in factors(real("sd15", 9))]
    assert names
    assert not any(known.match(name) for name in names)


def test_text_encoders_and_vae_of_an_export(tmp_path: Path) -> None:
    """A CLIP is known by text_model.encoder.layers.N.mlp.fc1.weight, a diffusers VAE by its decoder's first norm."""
    pipeline = tiny_folders.stable_diffusion(9)
    pipeline.save_pretrained(tmp_path)
    exported_files.write_text_encoder(pipeline.text_encoder, tmp_path)
    places = exported_files.comfyui_places(tmp_path, "unet")
    assert set(places.values()) == {"models/diffusion_models", "models/vae", "models/text_encoders"}
    (text,) = [name for name, folder in places.items() if folder == "models/text_encoders"]
    saved = load_file(tmp_path / text)
    assert "text_model.encoder.layers.0.mlp.fc1.weight" in saved
    state = pipeline.text_encoder.state_dict()
    assert all(torch.equal(saved[name], state[name.removeprefix("text_model.")]) for name in saved)
    assert "decoder.up_blocks.0.resnets.0.norm1.weight" in load_file(
        tmp_path / "vae/diffusion_pytorch_model.safetensors"
    )


def test_a_model_that_is_known_by_other_names_is_written_with_them(tmp_path: Path) -> None:
    denoiser = tiny.unet(9)
    exported_files.write_denoiser(denoiser, tmp_path)
    assert not list(tmp_path.iterdir())
    with mock.patch.object(exported_files, "knows_denoiser", return_value="renamed"):
        exported_files.write_denoiser(denoiser.to(memory_format=torch.channels_last), tmp_path)
    saved = load_file(tmp_path / exported_files.DENOISER)
    again = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{name}": value for name, value in saved.items()}, dict(denoiser.config)
    )
    state = denoiser.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert exported_files.comfyui_places(tmp_path, "unet") == {exported_files.DENOISER: "models/diffusion_models"}


def test_what_comfyui_cannot_do_is_said() -> None:
    ddim = tiny_folders.ddim()
    assert exported_files.comfyui_limits(real("sd15", 9), ddim) == []
    (limit,) = exported_files.comfyui_limits(real("sd3", 33), ddim)
    assert limit.startswith("it knows no SD3Transformer2DModel with 33 input channels")
    ddim.register_to_config(prediction_type="v_prediction")
    (limit,) = exported_files.comfyui_limits(real("sd15", 9), ddim)
    assert "ModelSamplingDiscrete (v_prediction, zsnr off)" in limit
