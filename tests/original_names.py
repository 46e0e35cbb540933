"""Weights of diffusers' models under the names that the base models' own code gives them, from the layout of its
modules: Stable Diffusion's input_blocks, middle_block and output_blocks are counted through, a block's layers and its
sampler; query, key and value are one layer in OpenCLIP, SD3 and Flux."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
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
    """The whole checkpoint of a pipeline, as it is shared; without `text` its denoiser and VAE alone."""
    if hasattr(pipeline, "unet"):
        unet = pipeline.unet
        layers, attends = unet.config.layers_per_block, ["CrossAttn" in kind for kind in unet.config.up_block_types]
        denoiser = {unet_name(name, layers, attends): value for name, value in unet.state_dict().items()}
    else:
        denoiser = transformer(pipeline.transformer)
    state = {f"model.diffusion_model.{name}": value for name, value in denoiser.items()}
    blocks = len(pipeline.vae.config.up_block_types)
    for name, value in pipeline.vae.state_dict().items():
        old = vae_name(name, blocks)
        linear = ".mid.attn_1." in old and value.ndim == 2  # was a convolution of 1 x 1
        state[f"first_stage_model.{old}"] = value[:, :, None, None] if linear else value
    return {name: value.contiguous() for name, value in (state | (text_state(pipeline) if text else {})).items()}


def text_state(pipeline: Any) -> dict[str, Tensor]:
    """The text encoders of a checkpoint: 1.x has a CLIP, 2.x an OpenCLIP, XL both, SD3 and Flux CLIP and T5."""
    encoder, kind = pipeline.text_encoder, type(pipeline).__name__
    if "XL" in kind:
        second = open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
        return clip(encoder, "conditioner.embedders.0.transformer.") | second
    if "Diffusion3" in kind or "Flux" in kind:
        t5 = pipeline.text_encoder_3 if "Diffusion3" in kind else pipeline.text_encoder_2
        made = clip(encoder, "text_encoders.clip_l.transformer.")
        if "Diffusion3" in kind:
            made |= clip(pipeline.text_encoder_2, "text_encoders.clip_g.transformer.")
        state = {name: value for name, value in t5.state_dict().items() if name != "encoder.embed_tokens.weight"}
        return made | {f"text_encoders.t5xxl.transformer.{name}": value for name, value in state.items()}
    if encoder.config.hidden_act == "gelu":
        return open_clip(encoder, "cond_stage_model.model.")
    return clip(encoder, "cond_stage_model.transformer.")


def clip(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A CLIP text encoder, as transformers named it when these files were written."""
    names = ((name.removeprefix("text_model."), value) for name, value in encoder.state_dict().items())
    outside = "text_projection"  # of the text model
    return {f"{prefix}{name if name.startswith(outside) else f'text_model.{name}'}": value for name, value in names}


_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def open_clip(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A CLIP text encoder as OpenCLIP names it: query, key and value in one, the projection turned."""
    state = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    made = {}
    for name, value in state.items():
        if name in _OPEN_CLIP:
            made[_OPEN_CLIP[name]] = value.T if name.startswith("text_projection") else value
        elif found := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts = [state[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            made[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[2]}"] = torch.cat(parts)
        elif found := re.fullmatch(r"encoder\.layers\.(\d+)\.(?!self_attn\.[kv]_proj)(.+)", name):
            made[f"transformer.resblocks.{found[1]}.{_renamed(found[2], _OPEN_CLIP_LAYER)}"] = value
    return {prefix + name: value for name, value in made.items()}


def swapped(value: Tensor) -> Tensor:
    """Scale and shift in the other order."""
    return torch.cat(value.chunk(2)[::-1])


_SD3 = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_SD3_CAT = {
    "attn.to_q": ("x_block.attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.add_q_proj": ("context_block.attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_FLUX = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_SINGLE = {
    "norm.linear": "modulation.lin",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
    "proj_out": "linear2",
}
_FLUX_CAT = {
    "attn.to_q": ("img_attn.qkv", "attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.add_q_proj": ("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_FLUX_SINGLE_CAT = {"attn.to_q": ("linear1", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
_BLOCKS = {  # of a transformer: what the block is called, its names, and what stands in one there
    "SD3Transformer2DModel": (_SD3, {"transformer_blocks": ("joint_blocks", _SD3_BLOCK, _SD3_CAT)}),
    "FluxTransformer2DModel": (
        _FLUX,
        {
            "transformer_blocks": ("double_blocks", _FLUX_DOUBLE, _FLUX_CAT),
            "single_transformer_blocks": ("single_blocks", _FLUX_SINGLE, _FLUX_SINGLE_CAT),
        },
    ),
}


def transformer(model: Any) -> dict[str, Tensor]:
    """A transformer of SD3 or Flux as its own code names it."""
    names, kinds = _BLOCKS[type(model).__name__]
    state, made = model.state_dict(), {}
    for name, value in state.items():
        found = re.fullmatch(r"(\w+_blocks)\.(\d+)\.(.+)\.(weight|bias)", name)
        if found is None:
            value = swapped(value) if name.startswith("norm_out") else value
            made[_renamed(name, names) if name not in names else names[name]] = value
            continue
        kind, block, layer, end = found.groups()
        home, inside, joined = kinds[kind]
        if layer in joined:
            target, *parts = joined[layer]
            made[f"{home}.{block}.{target}.{end}"] = torch.cat([state[f"{kind}.{block}.{p}.{end}"] for p in parts])
        elif not any(layer in parts for _, *parts in joined.values()):
            last = (
                kind == "transformer_blocks"
                and home == "joint_blocks"
                and int(block) == len(model.transformer_blocks) - 1
            )
            value = swapped(value) if last and layer == "norm1_context.linear" else value
            new = inside.get(f"{layer}.{end}") or f"{inside[layer]}.{end}"
            made[f"{home}.{block}.{new}"] = value
    return made
