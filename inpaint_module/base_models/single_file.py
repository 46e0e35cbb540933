"""Base models in a single file, .safetensors or .ckpt in the original names -> the folder that all else here reads.

The file is converted once, by diffusers' `from_single_file`, into a folder of a cache; configs, tokenizers and what the
file lacks come from a local folder of the same base model. Nothing is asked of the hub, and no code in a file runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from inpaint_module.files import atomic_folder, locked
from inpaint_module.parsing import parse_json
from inpaint_module.weights import weightless

ENDINGS = (".safetensors", ".ckpt")
CACHE = "INPAINT_MODELS"  # the environment's name for the folder of converted models
_DENOISER = "model.diffusion_model."
_PARTS = {  # what names begin with in a file that holds the part
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
}
_T5 = ("text_encoders.t5xxl.",)
_OTHER = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.", "model_ema.")
_SCALED = ("scaled_fp8", ".scale_weight", ".weight_scale", ".scale_input", ".input_scale", ".absmax", ".wscales")
_PROJECTION = "text_encoders.clip_l.transformer.text_projection.weight"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def folder_of(path: str, config: str | None = None) -> str:
    """The folder of a base model: `path` itself, or what the single file there was converted to.

    Args:
        path: a pipeline's folder or hub name, or a file that ends in .safetensors or .ckpt.
        config: of a file, the local folder of a pipeline of the same base model: configs, tokenizers, and weights of
            the parts that the file has not, such as Flux's VAE and text encoders.

    Raises:
        ValueError: no such file, no folder beside it, or one that is not of its base model; weights that cannot be
            read.
    """
    if not path.endswith(ENDINGS):
        if os.path.isfile(path):
            raise ValueError(
                f"base.path: expected a folder, or a file that ends in {' or '.join(ENDINGS)}, got {path!r}"
            )
        if config is not None:
            raise ValueError(f"base.config: expected null with {path!r}, which has configs of its own, got {config!r}")
        return path
    if not os.path.isfile(path):
        raise ValueError(f"base.path: expected a file at {path!r}, got none")
    if config is None or not (Path(config) / "model_index.json").is_file():
        raise ValueError(
            f"base.config: expected the local folder of a pipeline of the same base model, with model_index.json, the "
            f"configs and tokenizers of all its parts, for the single file {path!r}, got {config!r}"
        )
    if weightless():
        return config
    home = Path(os.environ.get(CACHE) or "~/.cache/inpaint_module/models").expanduser()
    made = home / f"{Path(path).stem}-{_identity(path, config)}"
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / ".lock"):  # of several ranks the first converts, and the others wait for it
        if not made.is_dir():
            _convert(path, config, made)
    return str(made)


def _identity(path: str, config: str) -> str:
    """Of the file, the folder that gives what it lacks, by places, sizes and times of all; and of the converter."""
    import diffusers

    digest = hashlib.sha256(diffusers.__version__.encode())
    for each in [Path(path), *sorted(each for each in Path(config).rglob("*") if each.is_file())]:
        state = each.stat()
        digest.update(f"{os.path.realpath(each)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _convert(path: str, config: str, made: Path) -> None:
    import diffusers

    names = _names(path)
    if lora := [name for name in names if "lora_" in name]:
        raise ValueError(
            f"base.path: expected a base model in {path!r}, got a LoRA with {lora[0]!r}; name its base model here, and "
            "the file as base.lora.start"
        )
    index = parse_json((Path(config) / "model_index.json").read_text(), "model_index.json").value
    kind = getattr(diffusers, str(index.get("_class_name")), None)
    if kind is None or not hasattr(kind, "from_single_file"):
        raise ValueError(f"base.config: expected a pipeline that reads single files in {config!r}, got {kind}")
    dtype = _dtype(path, names)
    given: dict[str, Any] = {name: None for name in ("safety_checker", "feature_extractor") if name in index}
    try:
        given |= _lacking(index, names, config, dtype)
        pipeline = kind.from_single_file(path, config=config, local_files_only=True, torch_dtype=dtype, **given)
    except Exception as error:  # of many kinds: what is missing, of another shape, or no weights at all
        raise ValueError(
            f"base.path: cannot read {path!r} as a {kind.__name__} with the configs in {config!r}; is the folder of "
            f"the same base model, and does it hold the weights that the file lacks? {type(error).__name__}: {error}"
        ) from error
    _complete(pipeline, path, names)
    _check(pipeline, names, path, config)
    with atomic_folder(made) as folder:
        pipeline.save_pretrained(folder)


def _complete(pipeline: Any, path: str, names: Collection[str]) -> None:
    """What the file says and diffusers 0.42 does not read."""
    import transformers
    from safetensors import safe_open

    for part in pipeline.components.values():
        if isinstance(part, transformers.PreTrainedModel):
            part.tie_weights()  # a T5 stands in files with one of its two names for the same weights
    if _PROJECTION in names and "text_projection.weight" in pipeline.text_encoder.state_dict():
        with safe_open(path, "pt") as file, torch.no_grad():
            pipeline.text_encoder.text_projection.weight.copy_(file.get_tensor(_PROJECTION))
    if "v_pred" in names:  # by these two empty tensors those who share such models say how they were trained
        changes = {"prediction_type": "v_prediction", **({"rescale_betas_zero_snr": True} if "ztsnr" in names else {})}
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)


def _lacking(index: Mapping[str, Any], names: Collection[str], config: str, dtype: torch.dtype) -> dict[str, Any]:
    """VAE and text encoders that the file does not hold, from the folder beside it."""
    import diffusers
    import transformers

    made = {}
    for part in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        kind = (index.get(part) or [None, None])[1]
        begins = _T5 if str(kind).startswith("T5") else _PARTS.get(part, ())
        if kind is not None and not any(name.startswith(begins) for name in names):
            loader: Any = diffusers.AutoModel if part == "vae" else getattr(transformers, kind)
            options = {"torch_dtype": dtype} if part == "vae" else {"dtype": dtype}
            made[part] = loader.from_pretrained(config, subfolder=part, local_files_only=True, **options)
    return made


def _names(path: str) -> dict[str, tuple[str, int]]:
    """The names of a file's tensors, each with its dtype as safetensors calls it and the number of its values.

    Raises:
        ValueError: naming the file, if it holds no weights, or more than weights.
    """
    try:
        if path.endswith(".safetensors"):
            return _header(path)
        state = torch.load(path, map_location="meta", weights_only=True, mmap=True)
        while "state_dict" in state:
            state = state["state_dict"]
        items = list(state.items())
    except Exception as error:  # unpickling fails in many ways, and what comes may be no mapping
        raise ValueError(
            f"base.path: expected weights alone in {path!r}, got what cannot be read so: {error}"
        ) from error
    kinds = {dtype: name for name, dtype in _DTYPES.items()}
    return {
        name: (kinds.get(value.dtype, str(value.dtype)), value.numel())
        for name, value in items
        if isinstance(value, torch.Tensor)
    }


def _header(path: str) -> dict[str, tuple[str, int]]:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > min(os.path.getsize(path), 100_000_000):
            raise ValueError("no safetensors file, or one that is cut short")
        header = json.loads(file.read(size))
    return {
        name: (entry["dtype"], torch.Size(entry["shape"]).numel())
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _dtype(path: str, names: Mapping[str, tuple[str, int]]) -> torch.dtype:
    """What most values of the file are kept in; float8, in which nothing is computed, becomes bfloat16."""
    if scaled := [name for name in names if name.endswith(_SCALED)]:
        raise ValueError(
            f"base.path: expected plain weights in {path!r}, got numbers of few bits with scales beside them, such as "
            f"{scaled[0]!r}; take the file in bfloat16 or float16"
        )
    values: Counter[str] = Counter()
    for dtype, count in names.values():
        values[dtype] += count
    most = values.most_common(1)[0][0] if values else "F32"
    if "F8" in most or "float8" in most:
        warnings.warn(
            f"base.path: {path!r} holds float8 weights ({most}), of which each has 2 or 3 bits after the leading one: "
            "they are read as bfloat16 and stay as coarse as they are",
            stacklevel=2,
        )
        return torch.bfloat16
    return _DTYPES.get(most, torch.float32)


def _check(pipeline: Any, names: Mapping[str, tuple[str, int]], path: str, config: str) -> None:
    """Refuse a denoiser that has not got every value from the file: diffusers leaves others as they are drawn."""
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    inside = any(name.startswith(_DENOISER) for name in names)
    chosen = [name for name in names if (name.startswith(_DENOISER) if inside else not name.startswith(_OTHER))]
    have, need = sum(names[name][1] for name in chosen), sum(value.numel() for value in denoiser.state_dict().values())
    empty = [name for name, value in pipeline.components.items() if _has_no_values(value)]
    if have != need or empty:
        raise ValueError(
            f"base.config: expected the configs of the base model in {path!r}, whose denoiser has {have:,} values; "
            f"that of {config!r} has {need:,}{f', and {empty} got no weights' if empty else ''}"
        )


def _has_no_values(part: Any) -> bool:
    return isinstance(part, torch.nn.Module) and any(value.is_meta for value in part.parameters())
