"""Which recipe fits on which card, computed: `inpaint fit --estimate` over the base models' own sizes, without weights.

    PYTHONPATH=tests python -m tests.benchmarks.bench_memory    # ten minutes on a quiet core; no GPU, no network

The folders hold configs alone, with the published sizes of each model; the words of their tokenizers do not count.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tiny_folders import clip_tokenizer, ddim, t5_tokenizer

from inpaint_module.cli import main
from tests.benchmarks.markdown import table

CARDS = (8, 12, 16, 24, 48, 80)
CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5 = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "feed_forward_proj": "gated-gelu"}
SD15 = {"in_channels": 9, "out_channels": 4, "cross_attention_dim": 768}
SDXL = {
    "in_channels": 9,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD3 = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
FLUX = {"in_channels": 384, "out_channels": 64, "guidance_embeds": True}
MODELS: dict[str, tuple[str, str, dict[str, Any], int]] = {  # pipeline, denoiser, its config, latent channels
    "sd15": ("StableDiffusionInpaintPipeline", "UNet2DConditionModel", SD15, 4),
    "sdxl": ("StableDiffusionXLInpaintPipeline", "UNet2DConditionModel", SDXL, 4),
    "sd3": ("StableDiffusion3InpaintPipeline", "SD3Transformer2DModel", SD3, 16),
    "flux_fill": ("FluxFillPipeline", "FluxTransformer2DModel", FLUX, 16),
}
TEXT = {"sd15": "c", "sdxl": "cg", "sd3": "pgt", "flux_fill": "ct"}  # c, p: CLIP-L without and with its projection
BITS = ["--model.base.quantize=nf4", "--model.base.text.quantize=nf4"]
LORA = ["--config=configs/lora.yaml"]
RECIPES = {
    "all weights": [],
    "all weights, `adamw8bit.yaml`, no EMA": ["--config=configs/adamw8bit.yaml", "--trainer.callbacks.EMA=null"],
    "LoRA": LORA,
    "LoRA, `quantize: nf4`": [*LORA, *BITS],
    "LoRA, `quantize: nf4`, batch 1, VAE in bf16": [*LORA, *BITS, "--data.batch_size=1", "--config=configs/bf16.yaml"],
}


def write(folder: Path, name: str) -> None:
    """A pipeline's folder without weights."""
    pipeline, denoiser, config, channels = MODELS[name]
    part = "unet" if denoiser.startswith("UNet") else "transformer"
    index = {"_class_name": pipeline, part: ["diffusers", denoiser], "vae": ["diffusers", "AutoencoderKL"]}
    _config(folder / part, {"_class_name": denoiser, **config})
    vae: dict[str, Any] = {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": channels,
    }
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    _config(
        folder / "vae", {"_class_name": "AutoencoderKL", **vae, **kinds, "scaling_factor": 1.0, "shift_factor": 0.0}
    )
    flows = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    scheduler = flows if channels == 16 else {**ddim().config, "_class_name": "DDIMScheduler"}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    for number, kind in enumerate(TEXT[name], start=1):
        end = "" if number == 1 else f"_{number}"
        model = {"c": "CLIPTextModel", "t": "T5EncoderModel"}.get(kind, "CLIPTextModelWithProjection")
        tokenizer = t5_tokenizer() if kind == "t" else clip_tokenizer()
        sizes = {"t": T5, "g": CLIP_G}.get(kind, CLIP)
        words = {"vocab_size": 32128} if kind == "t" else {"vocab_size": 49408, "projection_dim": sizes["hidden_size"]}
        told = {"model_type": "t5" if kind == "t" else "clip_text_model", "architectures": [model]}
        _config(folder / f"text_encoder{end}", {**told, **sizes, **words})
        tokenizer.save_pretrained(folder / f"tokenizer{end}")
        index |= {f"text_encoder{end}": ["transformers", model]}
        index |= {f"tokenizer{end}": ["transformers", type(tokenizer).__name__]}
    (folder / "model_index.json").write_text(json.dumps(index))


def _config(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))


def rows(name: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """Peak of each recipe, and the smallest card that it fits on."""
    for recipe, options in RECIPES.items():
        if name == "flux_fill" and "lora.yaml" in str(options):
            options = [each for each in options if each not in LORA]  # it is LoRA already
        elif name == "flux_fill":
            continue
        with contextlib.redirect_stdout(io.StringIO()) as told:
            configs = ["--config=configs/quickstart.yaml", f"--config=configs/{name}.yaml"]
            code = main(["fit", *configs, *options, f"--model.base.path={folder}", "--estimate"])
        assert code == 0
        parts = dict(line.rsplit(maxsplit=1) for line in told.getvalue().splitlines() if line.startswith("  "))
        gib = {key.strip(): float(value) for key, value in parts.items()}
        card = next((f"{size} GB" for size in CARDS if gib["peak"] * 1.1 + 0.5 <= size * 1e9 / 2**30), "none")
        shown = ("weights", "text encoders", "activations", "peak")
        yield name, recipe, *(f"{gib.get(each, 0):.1f}" for each in shown), card


def all_rows(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Those of each model, as soon as they are there."""
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            write(Path(place), name)
            yield from rows(name, Path(place))


if __name__ == "__main__":
    os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"
    head = ("config", "recipe", "weights", "text", "activations", "peak, GiB", "smallest card")
    table("Memory by base model and recipe, computed", head, all_rows(sys.argv[1:] or MODELS))
