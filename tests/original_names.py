"""Weights of diffusers' models under the names that Stable Diffusion's own code gives them, from the layout of its
modules: input_blocks, middle_block and output_blocks are counted through, a block's layers and its sampler."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _renamed(name: str, names: Mapping[str, str]) -> str:
    begin = next((begin for begin in names if name.startswith(f"{begin}.")), None)
    return name if begin is None else names[begin] + name[len(begin) :]


def unet_name(name: str, layers: int, attends: list[bool]) -> str:
    """A name of UNet2DConditionModel; `attends` says of each up block whether it has attention."""
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, number, rest = found[1], int(found[2]), found[3]
        return f"middle_block.{2 * number}.{_renamed(rest, _RESNET)}" if kind == "resnets" else f"middle_block.1.{rest}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if found is None:
        return _renamed(name, _ENDS)
    way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    place = block * (layers + 1) + layer
    home = f"input_blocks.{1 + place}" if way == "down" else f"output_blocks.{place}"
    if kind == "resnets":
        return f"{home}.0.{_renamed(rest, _RESNET)}"
    if kind == "attentions":
        return f"{home}.1.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{1 + block * (layers + 1) + layers}.0.{rest.replace('conv', 'op')}"
    return f"output_blocks.{block * (layers + 1) + layers}.{2 if attends[block] else 1}.{rest}"


def vae_name(name: str, blocks: int) -> str:
    """A name of AutoencoderKL."""
    if found := re.fullmatch(r"(\w+)\.mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        part, kind, number, rest = found[1], found[2], int(found[3]), found[4]
        if kind == "resnets":
            return f"{part}.mid.block_{number + 1}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{part}.mid.attn_1.{_renamed(rest, _ATTENTION)}"
    found = re.fullmatch(r"(\w+)\.(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if found is None:
        return name.replace("conv_norm_out", "norm_out")
    part, way, kind, rest = found[1], found[2], found[4], found[6]
    block = int(found[3]) if way == "down" else blocks - 1 - int(found[3])
    if kind == "resnets":
        return f"{part}.{way}.{block}.block.{found[5]}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
    return f"{part}.{way}.{block}.{way}sample.{rest}"


def original(pipeline: Any, *, text: bool = True) -> dict[str, Tensor]:
    """The whole checkpoint of a Stable Diffusion 1 or XL pipeline; without `text` its denoiser and VAE alone."""
    unet, vae = pipeline.unet, pipeline.vae
    layers, attends = unet.config.layers_per_block, ["CrossAttn" in kind for kind in unet.config.up_block_types]
    state = {
        f"model.diffusion_model.{unet_name(name, layers, attends)}": value for name, value in unet.state_dict().items()
    }
    blocks = len(vae.config.up_block_types)
    for name, value in vae.state_dict().items():
        old = vae_name(name, blocks)
        linear = ".mid.attn_1." in old and value.ndim == 2  # was a convolution of 1 x 1
        state[f"first_stage_model.{old}"] = value[:, :, None, None] if linear else value
    if text:
        state |= clip(pipeline.text_encoder, "cond_stage_model.transformer.")
    return {name: value.contiguous() for name, value in state.items()}


def clip(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A CLIP text encoder, as transformers named it when these files were written."""
    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": value for name, value in encoder.state_dict().items()
    }
