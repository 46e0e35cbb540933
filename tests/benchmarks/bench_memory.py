"""Which recipe fits on which card, computed: `inpaint fit --estimate` over the base models' own sizes, without weights.

    python -m tests.benchmarks.bench_memory                  # ten minutes on a quiet core; no GPU, no network
    python -m tests.benchmarks.bench_memory --device cuda    # four of them trained too: is the peak as computed?
    python -m tests.benchmarks.bench_memory --device cuda --models flux_fill

The folders hold configs alone, with the published sizes of each model; the words of their tokenizers do not count. To
train, the weights are random; Flux's take 24 GB on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from inpaint_module.cli import main as inpaint
from inpaint_module.weights import config_model
from tests.benchmarks import machine
from tests.benchmarks.markdown import table

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_folders import clip_tokenizer, ddim, t5_tokenizer

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
    "LoRA, `quantize: nf4`, batch 1": [*LORA, *BITS, "--data.batch_size=1"],
}
MEASURED = {  # model: recipe, options, the peak that it should stay under, in GiB
    "sd15": ("LoRA, batch 1", [*LORA, "--data.batch_size=1"], 4),
    "sdxl": ("LoRA, `offload: true`", [*LORA, "--model.offload=true"], 8),
    "sd3": ("LoRA, `quantize: nf4`", [*LORA, *BITS], None),
    "flux_fill": ("LoRA, `quantize: nf4`", BITS, 16),
}
NEAR = 0.1  # share of the measured peak by which the computed one may be off


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


def fill(folder: Path, name: str, device: str = "cuda") -> None:
    """Random weights for what `write` has described, in the dtypes that the configs load."""
    for config in sorted(folder.glob("*/config.json")):
        frozen = name == "flux_fill" or config.parent.name.startswith("text_encoder")
        dtype = torch.bfloat16 if frozen else torch.float32
        made = config_model(str(folder), config.parent.name, dtype).to_empty(device=device)
        for each in made.parameters():
            each.data.normal_(std=0.02)
        if config.parent.name.startswith("text_encoder"):
            made.tie_weights()
        made.save_pretrained(config.parent)
        del made
        torch.cuda.empty_cache()


def computed(name: str, folder: Path, options: list[str]) -> dict[str, float]:
    """What `inpaint fit --estimate` says, in GiB, by its words."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        code = inpaint([*_fit(name, folder, options), "--estimate"])
    assert code == 0
    parts = dict(line.rsplit(maxsplit=1) for line in told.getvalue().splitlines() if line.startswith("  "))
    return {key.strip(): float(value) for key, value in parts.items()}


def trained(name: str, folder: Path, options: list[str]) -> float:
    """The peak of two steps, in GiB, as `inpaint fit` says it."""
    with tempfile.TemporaryDirectory() as runs:
        quick = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--trainer.callbacks.ValidationReport=null"]
        quick += ["--trainer.callbacks.EMA=null", "--trainer.callbacks.ModelCheckpoint=null", "--samples=null"]
        quick += ["--trainer.accelerator=gpu", f"--trainer.logger.init_args.save_dir={runs}"]
        command = [sys.executable, "-m", "inpaint_module", *_fit(name, folder, [*options, *quick])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"memory: ([\d.]+) GiB at the peak, measured", done.stdout + done.stderr)
    if done.returncode or found is None:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return float(found[1])


def _fit(name: str, folder: Path, options: list[str]) -> list[str]:
    configs = ["--config=configs/quickstart.yaml", f"--config=configs/{name}.yaml"]
    if name == "flux_fill":
        options = [each for each in options if each not in LORA]  # it is LoRA already
    return ["fit", *configs, *options, f"--model.base.path={folder}"]


def measured_rows(names: Iterable[str]) -> Iterator[tuple[Any, ...]]:
    """Computed and measured peaks of `MEASURED`, and whether they are near and under what they should be."""
    for name in names:
        recipe, options, most = MEASURED[name]
        with tempfile.TemporaryDirectory() as place:
            write(Path(place), name)
            expected = computed(name, Path(place), [*options, "--trainer.callbacks.EMA=null"])["peak"]
            fill(Path(place), name)
            peak = trained(name, Path(place), options)
        near = "yes" if abs(expected / peak - 1) <= NEAR else "no"
        under = "" if most is None else f"{'yes' if peak <= most else 'no'}, {most}"
        yield name, recipe, f"{expected:.2f}", f"{peak:.2f}", near, under


def rows(name: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """Peak of each recipe, and the smallest card that it fits on."""
    for recipe, options in RECIPES.items():
        if name == "flux_fill" and "lora.yaml" not in str(options):
            continue
        gib = computed(name, folder, options)
        card = next((f"{size} GB" for size in CARDS if gib["peak"] * 1.1 + 0.5 <= size * 1e9 / 2**30), "none")
        shown = ("weights", "text encoders", "activations", "peak")
        yield name, recipe, *(f"{gib.get(each, 0):.1f}" for each in shown), card


def all_rows(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Those of each model, as soon as they are there."""
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            write(Path(place), name)
            yield from rows(name, Path(place))


def main(arguments: list[str] | None = None) -> None:
    """All tables of a device."""
    parser = argparse.ArgumentParser("bench_memory", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="the smallest model alone")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    options = parser.parse_args(arguments)
    os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"
    names = options.models[:1] if options.quick else options.models
    machine.heading("Memory benchmark", options.device, "Peaks of a training step.")
    if options.device == "cuda":
        head: tuple[str, ...] = ("config", "recipe", "computed, GiB", "measured", "within 10 %", "under, GiB")
        table("Memory of two steps, computed and measured", head, measured_rows(names))
        return
    head = ("config", "recipe", "weights", "text", "activations", "peak, GiB", "smallest card")
    table("Memory by base model and recipe, computed", head, all_rows(names))


if __name__ == "__main__":
    main()
