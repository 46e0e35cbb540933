"""What an exported folder holds beside the pipeline: its model card, README.md, and files for ComfyUI.

ComfyUI recognises a model by the names and shapes in its file. It knows most of diffusers' names; what it does not know
is written once more, with names that it does, into the folder `comfyui`. Run with ComfyUI 0.3.64; its rules for these
denoisers were the same in 0.38.1.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import Tensor, nn

from inpaint_module.cli.parser import read_config
from inpaint_module.files import atomic_write_text, redacted, redacted_command
from inpaint_module.training.run_folder import RECORD, config_path, metrics_path, read_metrics, read_record

CARD, PICTURES = "README.md", "pictures"


def run_of(checkpoint: Path, configs: Sequence[Path] = ()) -> Path | None:
    """The run folder that a checkpoint, or else a config, lies in; None if there is no run.json."""
    folders = [checkpoint.absolute().parent.parent, *(config.absolute().parent for config in configs)]
    return next((folder for folder in folders if (folder / RECORD).is_file()), None)


def write_card(out: Path, record: Mapping[str, Any], loading: str, base: str | None, run: Path | None = None) -> None:
    """Write README.md into an exported folder, and the run's newest picture grid beside it.

    Args:
        out: the folder.
        record: what is in its export.json.
        loading: Python that loads it.
        base: folder or hub name of the base model; of a folder only its last name is written. None if there is none.
        run: the run's folder; None for a card without its command, metrics, config and pictures.
    """
    hub = base if base and not Path(base).exists() else None
    front = {"library_name": "diffusers", "pipeline_tag": "image-to-image", "tags": ["inpainting"]}
    head = yaml.safe_dump(front | ({"base_model": hub} if hub else {}), sort_keys=False)
    lines = ["---", head.strip(), "---", "", "# Inpainting", ""]
    if base is not None:
        lines += [f"Trained from {hub or Path(base).name}.", ""]
    lines += ["## Load", "", "```python", loading, "```", ""]
    if differences := record.get("differences"):
        lines += ["What the pipeline does otherwise than training did:", "", *(f"- {each}" for each in differences), ""]
    if run is not None:
        lines += _of_run(run, out)
    atomic_write_text(out / CARD, "\n".join(lines))


def _of_run(run: Path, out: Path) -> list[str]:
    """Command, metrics, pictures and config of a run."""
    record = read_record(run / RECORD)
    command = shlex.join(redacted_command(record.get("command", [])))
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    lines = ["## Training", "", "```bash", command, "```", "", f"On {record.get('device', '?')}, with {versions}.", ""]
    if (path := metrics_path(run)).is_file() and (rows := {row.metric: row for row in read_metrics(path)}):
        lines += ["| metric | step | value |", "|---|---|---|"]
        lines += [f"| {name} | {row.step} | {row.value:.6g} |" for name, row in sorted(rows.items())] + [""]
    if grids := sorted((run / "grids").glob("*.png")):
        (out / PICTURES).mkdir()
        shutil.copyfile(grids[-1], out / PICTURES / grids[-1].name)
        lines += [f"![photos of the validation]({PICTURES}/{grids[-1].name})", ""]
    if (path := config_path(run)).is_file():
        lines += [
            "## Config",
            "",
            "```yaml",
            yaml.safe_dump(redacted(read_config(path)), sort_keys=False).strip(),
            "```",
        ]
    return [*lines, ""]


FOLDER = "comfyui"
LORA = f"{FOLDER}/lora.safetensors"
DENOISER = f"{FOLDER}/diffusion_model.safetensors"
TEXT_ENCODER = f"{FOLDER}/text_encoder.safetensors"

# a U-Net's input channels, width, width of text and of pooled text, and transformers at each residual block going down
_SD2 = (320, 1024, 0, (1, 1, 1, 1, 1, 1, 0, 0))
_KNOWN_UNETS = {
    (4, 320, 768, 0, (1, 1, 1, 1, 1, 1, 0, 0)),
    (9, 320, 768, 0, (1, 1, 1, 1, 1, 1, 0, 0)),
    (4, *_SD2),
    (4, 320, 2048, 2816, (0, 0, 2, 2, 10, 10)),
    (9, 320, 2048, 2816, (0, 0, 2, 2, 10, 10)),
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_AROUND = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def knows_denoiser(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Whether ComfyUI recognises a denoiser by the names and shapes of its tensors in diffusers' format.

    Returns:
        "as it is"; "renamed", if it knows the same model by the names of its first release; None for neither.
    """
    if "conv_in.weight" in shapes:
        found = _unet_signature(shapes)
        return "as it is" if found in _KNOWN_UNETS else "renamed" if found[1:] == _SD2 else None
    if "x_embedder.weight" in shapes and "single_transformer_blocks.0.proj_mlp.weight" in shapes:  # Flux, Flux Fill
        return "as it is" if shapes["x_embedder.weight"][1] in (64, 384) else None
    if "pos_embed.proj.weight" in shapes and "transformer_blocks.0.attn.add_q_proj.weight" in shapes:  # SD3
        return "as it is" if shapes["pos_embed.proj.weight"][1] == 16 else None
    return None


def original_unet_names(names: list[str], layers: int) -> dict[str, str]:
    """A U-Net's tensors by diffusers' names to those of Stable Diffusion's first release.

    Args:
        names: all of them.
        layers: residual blocks a level, `layers_per_block`.
    """
    return {name: _original_name(name, layers, names) for name in names}


def write_denoiser(denoiser: Any, out: Path) -> None:
    """Write a U-Net under its original names where ComfyUI knows it by no others (Stable Diffusion 2, 9 channels)."""
    state = denoiser.state_dict()
    if knows_denoiser({name: tuple(value.shape) for name, value in state.items()}) == "renamed":
        names = original_unet_names(list(state), denoiser.config.layers_per_block)
        _save({names[name]: value for name, value in state.items()}, out / DENOISER)


def write_text_encoder(model: nn.Module, out: Path) -> None:
    """Write a CLIP with the names that it had before transformers 5, the only ones that ComfyUI knows."""
    state = model.state_dict()
    if "encoder.layers.0.mlp.fc1.weight" in state:
        _save({f"text_model.{name}": value for name, value in state.items()}, out / TEXT_ENCODER)


def write_lora(factors: Mapping[str, Tensor], out: Path, *, unet: bool) -> None:
    """Write LoRA factors, by peft's names, as ComfyUI knows them: a U-Net's by kohya's names, others by diffusers'."""
    named = {f"{'unet' if unet else 'transformer'}.{name}": value for name, value in factors.items()}
    _save(convert_state_dict_to_kohya(named) if unet else named, out / LORA)


def comfyui_places(out: Path, denoiser: str) -> dict[str, str]:
    """The files of an export that ComfyUI loads, each with the folder of ComfyUI's that it goes into.

    Args:
        out: the export's folder.
        denoiser: the denoiser's folder in it, "unet" or "transformer".
    """
    weights = "diffusion_pytorch_model.safetensors"
    first = TEXT_ENCODER if (out / TEXT_ENCODER).is_file() else "text_encoder/model.safetensors"
    found = {
        DENOISER if (out / DENOISER).is_file() else f"{denoiser}/{weights}": "models/diffusion_models",
        f"vae/{weights}": "models/vae",
        first: "models/text_encoders",
        "text_encoder_2/model.safetensors": "models/text_encoders",
        "text_encoder_3/model.safetensors": "models/text_encoders",
        LORA: "models/loras",
    }
    return {name: folder for name, folder in found.items() if (out / name).is_file()}


def comfyui_limits(denoiser: Any, scheduler: Any) -> list[str]:
    """What ComfyUI cannot do with a denoiser, or needs a node for, in sentences."""
    if knows_denoiser({name: tuple(value.shape) for name, value in denoiser.state_dict().items()}) is None:
        channels = denoiser.config.get("in_channels")
        return [
            f"it knows no {type(denoiser).__name__} with {channels} input channels of these sizes, and cannot load it"
        ]
    if "conv_in" in dict(denoiser.named_children()) and scheduler.config.get("prediction_type") == "v_prediction":
        zero_snr = bool(scheduler.config.get("rescale_betas_zero_snr"))
        return [
            "it takes a U-Net with these names for one that predicts noise: put the node ModelSamplingDiscrete "
            f"(v_prediction, zsnr {'on' if zero_snr else 'off'}) behind its loader"
        ]
    return []


def _unet_signature(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int, int, tuple[int, ...]]:
    text = next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0)
    resnets = {match[0] for name in shapes if (match := re.match(r"down_blocks\.\d+\.resnets\.\d+\.", name))}
    depths = []
    for resnet in sorted(resnets):
        blocks = re.escape(resnet.replace("resnets", "attentions") + "transformer_blocks.") + r"(\d+)\."
        depths.append(len({match[1] for name in shapes if (match := re.match(blocks, name))}))
    inputs = shapes["conv_in.weight"]
    pooled = shapes.get("add_embedding.linear_1.weight", (0, 0))[1]
    return inputs[1], inputs[0], text, pooled, tuple(depths)


def _original_name(name: str, layers: int, names: list[str]) -> str:
    for ours, theirs in _AROUND.items():
        if name.startswith(ours + "."):
            return theirs + _inside(name.removeprefix(ours))
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(.*)", name)
    if match is None:
        raise ValueError(f"expected the names of a Stable Diffusion U-Net, got {name}")
    way, level, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (level + 1)}.0.op{rest.removeprefix('.conv')}"
    if kind == "upsamplers":
        place = 2 if any(other.startswith(f"up_blocks.{level}.attentions.") for other in names) else 1
        return f"output_blocks.{(layers + 1) * level + layers}.{place}{rest}"
    block = f"input_blocks.{1 + (layers + 1) * level + number}" if way == "down" else ""
    block = block or f"output_blocks.{(layers + 1) * level + number}"
    return f"{block}.{0 if kind == 'resnets' else 1}{_inside(rest)}"


def _inside(rest: str) -> str:
    """The end of a name, after that of a residual block or of an attention, whose inner names are the same."""
    head, _, tail = rest.removeprefix(".").partition(".")
    return f".{_RESNET.get(head, head)}" + (f".{tail}" if tail else "")


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.detach().to(memory_format=torch.contiguous_format) for name, value in state.items()}
    save_file(contiguous, path)
