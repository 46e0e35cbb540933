"""From a training run to a folder that diffusers loads:

inpaint export out --config runs/sd15/config.yaml --checkpoint runs/sd15/checkpoints/last.ckpt

Writes the pipeline that serves the run's model, with a LoRA as `pytorch_lora_weights.safetensors` beside the weights;
of a ControlNet it alone; of a model without text encoders, for which diffusers has no pipeline, the folders unet, vae
and scheduler. The folder `comfyui` holds what ComfyUI knows by other names alone. `README.md` is a model card;
`export.json` says the dtypes, what will be otherwise than in training, and where ComfyUI wants each file.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import nn

from inpaint_module import exported_files
from inpaint_module.base_models import (
    DTYPES,
    TextConditioning,
    dequantize,
    families,
    has_lora,
    lora_weights,
    remove_lora,
    trains_first_layer,
)
from inpaint_module.cli import options
from inpaint_module.cli.errors import exit_code_of
from inpaint_module.exported_files import run_of, write_card
from inpaint_module.files import atomic_folder, atomic_write_text
from inpaint_module.parsing import read_json
from inpaint_module.trained import load_weights, module_from_configs
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.vae import DiffusersVAE

LORA_FILE = "pytorch_lora_weights.safetensors"
COMFYUI_FILE = exported_files.LORA
RECORD = "export.json"


def export(
    module: InpaintDiffusion,
    out: Path,
    *,
    fuse: bool = False,
    lora_only: bool = False,
    dtype: str | None = None,
    run_folder: Path | None = None,
) -> None:
    """Write the folder of the diffusers pipeline that serves this module; it changes the module's denoiser.

    The folder is whole or not there: until all is written its name is another one.

    Of a model without text encoders, for which diffusers has no pipeline, the parts alone: unet, vae and scheduler.
    Where a ControlNet trains it alone, which `from_pretrained(out)` of its class loads.

    Args:
        module: with its trained weights.
        out: a new or empty folder.
        fuse: add LoRA factors to the weights; otherwise they are a file beside them, for `load_lora_weights(out)`.
        lora_only: write that file alone.
        dtype: of the denoiser's weights: float32, bfloat16 or float16; None for that of its frozen weights, or of all
            if none are frozen. VAE and text encoders are written in the dtypes that they were trained beside.
        run_folder: of the run, whose command, config, metrics and pictures go into the model card, README.md.

    Warns:
        UserWarning: for other masks than training's, another decode, or a `clip_skip`; `export.json` lists all that
            will be otherwise.

    Raises:
        ValueError: a folder with files in it, an unknown dtype, a LoRA that is not there or cannot stand alone, a VAE
            that is not of diffusers, or a layout that the pipeline does not have.
    """
    _check(module, out, fuse, lora_only, dtype)
    denoiser = module.denoiser
    name = module.base.pipeline
    pipeline = families.pipeline_class(name)
    base, trained = base_dtype(denoiser), _dtypes(module)
    lora = has_lora(denoiser) and not fuse
    with atomic_folder(out) as folder:
        if has_lora(denoiser):
            if not fuse:
                save_lora(denoiser, pipeline, folder)
            remove_lora(denoiser, fuse=fuse)
        if not lora_only:
            for parameter in denoiser.parameters():  # channels_last is no order that safetensors writes
                parameter.data = parameter.data.to(DTYPES.get(dtype or "", base), memory_format=torch.contiguous_format)
            if module.control is None:
                _save_parts(module, pipeline, folder)
            else:
                denoiser.save_pretrained(folder, max_shard_size="999GB")
        record = _record(module, pipeline, folder, trained)
        loading = _loading(module, name, lora, lora_only)
        write_card(folder, record, loading, module.base.path, run_folder)


def _loading(module: InpaintDiffusion, pipeline: str | None, lora: bool, lora_only: bool) -> str:
    """Python that loads an exported folder."""
    here, base = '"THIS_FOLDER"', '"BASE_MODEL"'
    if pipeline is None:
        kind = type(module.denoiser).__name__
        return f'from diffusers import {kind}\n\ndenoiser = {kind}.from_pretrained({here}, subfolder="unet")'
    if module.control is not None:
        kind = type(module.denoiser).__name__
        home = module.base.home
        lines = [f"from {home} import {kind}, {pipeline}", "", f"controlnet = {kind}.from_pretrained({here})"]
        if home != "diffusers":
            lines[0] = f"# {kind} and {pipeline} are of https://github.com/{home}"
        return "\n".join([*lines, f"pipeline = {pipeline}.from_pretrained({base}, controlnet=controlnet)"])
    lines = [f"from diffusers import {pipeline}", ""]
    lines.append(f"pipeline = {pipeline}.from_pretrained({base if lora_only else here})")
    return "\n".join([*lines, f"pipeline.load_lora_weights({here})"] if lora else lines)


def _save_parts(module: InpaintDiffusion, pipeline: Any, out: Path) -> None:
    denoiser, conditioning = module.denoiser, module.conditioning
    for model in conditioning.models():
        dequantize(model)
    vae = copy.deepcopy(module.encoder.vae.module).to(memory_format=torch.contiguous_format)  # type: ignore[attr-defined]
    if pipeline is None or not isinstance(conditioning, TextConditioning):
        for name, part in (("unet", denoiser), ("vae", vae), ("scheduler", module.scheduler)):
            part.save_pretrained(out / name)
        return
    parts = {"vae": vae, "scheduler": module.scheduler, _folder(pipeline): denoiser, **conditioning.components()}
    pipeline(**parts).save_pretrained(out, max_shard_size="999GB")  # one file each, as ComfyUI wants it
    exported_files.write_denoiser(denoiser, out)
    exported_files.write_text_encoder(parts["text_encoder"], out)


def _record(module: InpaintDiffusion, pipeline: Any, out: Path, trained: dict[str, str]) -> dict[str, Any]:
    """Write and return what is in the folder, and warn of what its pipeline will do otherwise than training did."""
    encoder, denoiser = module.encoder, module.denoiser
    record: dict[str, Any] = {"dtypes": {"trained": trained, "written": _dtypes(module)}}
    name = module.base.pipeline
    if name is not None:
        differ = families.mask_differences(encoder, module.layout)
        asked = [families.scaling_difference(encoder, pipeline), families.decode_difference(encoder, pipeline)]
        asked.append(families.config_difference(module.denoiser, pipeline) if module.control is None else None)
        differ += filter(None, [*asked, families.clip_skip_difference(module.conditioning)])
        for each in differ:
            warnings.warn(each, stacklevel=3)
        differ += [difference] if (difference := families.posterior_difference(encoder, pipeline)) else []
        differ += [families.dtype_difference(encoder), *families.reference_call(module.layout)]
        if module.control is None:
            files = exported_files.comfyui_places(out, _folder(pipeline))
            notes = exported_files.comfyui_limits(denoiser, module.scheduler)
        else:
            differ += families.controlnet_call(module.control, pipeline)
            files = {"diffusion_pytorch_model.safetensors": "models/controlnet"}
            notes = ["ControlNets of this package have not been run in it"]
        record |= {"pipeline": name, "differences": differ, "comfyui": {"files": files, "limits": notes}}
    atomic_write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def _dtypes(module: InpaintDiffusion) -> dict[str, str]:
    """Of what does not train of each part, or of all of it."""
    parts = {"denoiser": module.denoiser, "vae": module.encoder.vae.module}  # type: ignore[attr-defined]
    if isinstance(module.conditioning, TextConditioning):
        parts |= {name: part for name, part in module.conditioning.components().items() if isinstance(part, nn.Module)}
    return {name: str(base_dtype(part)).removeprefix("torch.") for name, part in parts.items()}


def _folder(pipeline: Any) -> str:
    return "unet" if "unet" in inspect.signature(pipeline.__init__).parameters else "transformer"


def save_lora(denoiser: Any, pipeline: Any, out: Path) -> None:
    """Write the factors for `load_lora_weights`, scaled so that alpha is the rank, as every loader assumes.

    And once more for ComfyUI, which knows a U-Net's by other names.

    Raises:
        ValueError: a model that diffusers has no pipeline for.
    """
    if pipeline is None:
        raise ValueError(
            "fuse: expected true for a model without text encoders, whose LoRA no pipeline loads; got false"
        )
    config = denoiser.peft_config["default"]
    factors = {
        name: (value * (config.lora_alpha / config.r) if "lora_B" in name else value).contiguous()
        for name, value in lora_weights(denoiser).items()
    }
    unet = _folder(pipeline) == "unet"
    layers = "unet_lora_layers" if unet else "transformer_lora_layers"
    pipeline.save_lora_weights(out, weight_name=LORA_FILE, **{layers: factors})
    exported_files.write_lora(factors, out, unet=unet)


def _check(module: InpaintDiffusion, out: Path, fuse: bool, lora_only: bool, dtype: str | None) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out: expected a new or an empty folder, got {out}")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    if (fuse or lora_only) and not has_lora(module.denoiser):
        raise ValueError("fuse and lora_only: expected a denoiser with LoRA, got one without")
    if module.control is not None and has_lora(module.denoiser) and not fuse:
        raise ValueError("fuse: expected true for a ControlNet, whose LoRA no pipeline loads; got false")
    if fuse and lora_only:
        raise ValueError("fuse and lora_only: expected one of them, got both")
    if lora_only and trains_first_layer(module.denoiser):
        raise ValueError(
            "lora_only: expected a first layer as the base model's, got one that was trained, without "
            "which the factors mean nothing; export all, or fuse"
        )
    if not isinstance(module.encoder.vae, DiffusersVAE):
        raise ValueError(f"vae: expected an autoencoder of diffusers, got {type(module.encoder.vae).__name__}")


def base_dtype(denoiser: nn.Module) -> torch.dtype:
    """The dtype of what does not train, or of all."""
    parameters = [each for each in denoiser.parameters() if each.is_floating_point()]  # else quantized
    return next((each.dtype for each in parameters if not each.requires_grad), parameters[0].dtype)


def run(given: Namespace, overrides: Sequence[str]) -> int:
    """The command, with what `options.export` parsed."""
    module = module_from_configs(given.config, overrides)
    load_weights(module, given.checkpoint, averaged=not given.last_step)
    options = {"fuse": given.fuse, "lora_only": given.lora_only, "dtype": given.dtype}
    export(module, given.out, **options, run_folder=run_of(given.checkpoint, given.config))
    record = read_json(given.out / RECORD).value
    comfyui = record.get("comfyui", {"files": {}, "limits": []})
    lines = [f"wrote {given.out}", *(f"unlike training: {each}" for each in record.get("differences", []))]
    lines += [f"ComfyUI: {name} into {folder}" for name, folder in comfyui["files"].items()]
    lines += [f"ComfyUI: {limit}" for limit in comfyui["limits"]]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    return exit_code_of(lambda: run(*options.export().parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
