"""Tiny vision models in the real folder format."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "vit":
        return ViTModel(ViTConfig(**SMALL, intermediate_size=16), add_pooling_layer=False)
    if kind == "registers":
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, num_register_tokens=3))
    if kind == "resnet":
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        return ResNetModel(ResNetConfig(**sizes))
    if kind == "clip":
        text = CLIPTextConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        vision = CLIPVisionConfig(**SMALL, intermediate_size=16)
        return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    return Dinov2Model(Dinov2Config(**SMALL))


def saved(folder: Path, kind: str = "dinov2") -> str:
    model_of(kind).save_pretrained(folder)
    told = {"image_processor_type": "BitImageProcessor", "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return str(folder)
