"""Files of LoRA factors, as diffusers, PEFT and kohya's sd-scripts name them, into a denoiser that has such factors."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_PREFIXES = ("base_model.model.", "unet.", "transformer.", "diffusion_model.", "lora_unet_", "lora_transformer_")
_OF_TEXT = ("text_encoder", "lora_te", "base_model.model.text_model")
_FACTOR = re.compile(
    r"(?P<layer>.+?)\.(?P<factor>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up|lora_linear_layer\.down|"
    r"lora_linear_layer\.up)(\.default)?\.weight"
)
_UNET_PLACE = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.+)|mid_block\.attentions\.0\.(.+)")
_FLUX_PLACE = re.compile(r"(single_)?transformer_blocks\.")
_OF_FLUX = re.compile(r"(double|single)_blocks[._]\d")
_ADAPTER = "default"
_SHOWN = 3


@dataclass
class Factors:
    """Of one layer: `down` (rank, in), `up` (out, rank), and alpha, by which their product is scaled over the rank."""

    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float | None = None


def load_factors(denoiser: nn.Module, path: str, rank: int) -> None:
    """Put a file's factors where new ones are, in place, scaled so that they do what they did.

    Args:
        denoiser: with factors of peft.
        path: .safetensors, or a file of torch with weights alone.
        rank: of the denoiser's factors.

    Raises:
        ValueError: naming the file: no factors in it, of layers that have none here, or of another rank or shape.
    """
    layers = {name: layer for name, layer in denoiser.named_modules() if _ADAPTER in getattr(layer, "lora_A", {})}
    places = _places(layers, int(getattr(denoiser, "config", {}).get("layers_per_block", 0) or 0))
    found, unknown = _read(path, places)
    if unknown:
        raise ValueError(
            f"lora.start: expected factors of layers that lora.target_modules names, got others in {path!r}: "
            f"{', '.join(unknown[:_SHOWN])}, {len(unknown)} in all; name them there, or take a LoRA of this base model"
        )
    if not found:
        raise ValueError(f"lora.start: expected factors of the denoiser in {path!r}, got none")
    for name, factors in found.items():
        _put(layers[name], factors, name, path, rank)
    if new := sorted(layers.keys() - found.keys()):
        warnings.warn(
            f"lora.start: {path!r} has no factors of {len(new)} of {len(layers)} layers, such as {new[0]}: they begin "
            "anew",
            stacklevel=2,
        )


def _places(names: Iterable[str], layers_per_block: int) -> dict[str, str]:
    """Each way in which a file may call a layer -> its name."""
    places: dict[str, str] = {}
    for name in names:
        old = _original(name, layers_per_block)
        for spelled in (name, name.removesuffix(".0"), name.replace(".", "_"), old, old.replace(".", "_")):
            places.setdefault(spelled, name)
    return places


def _original(name: str, layers: int) -> str:
    """A layer of a U-Net's attention as Stable Diffusion's own code calls it, which sd-scripts takes for XL."""
    found = _UNET_PLACE.fullmatch(name)
    if found is None:
        return name
    if found[1] is None:
        return f"middle_block.1.{found[5]}"
    place = int(found[2]) * (layers + 1) + int(found[3])
    return f"input_blocks.{1 + place}.1.{found[4]}" if found[1] == "down" else f"output_blocks.{place}.1.{found[4]}"


def _read(path: str, places: Mapping[str, str]) -> tuple[dict[str, Factors], list[str]]:
    """The factors by the layers' names, and what belongs to no layer here."""
    state, alpha = _state(path)
    if any(_OF_FLUX.search(key) for key in state) and any(map(_FLUX_PLACE.match, places)):
        state = _split_of_flux(state, path)
    found: dict[str, Factors] = {}
    unknown: dict[str, None] = {}
    text = [name for name in state if name.startswith(_OF_TEXT)]
    for key, value in state.items():
        if key in text:
            continue
        part = _FACTOR.fullmatch(key.replace(".processor.", ".").replace("_lora.", ".lora."))
        spelled = part["layer"] if part else key.removesuffix(".alpha")
        name = places.get(_plain(spelled))
        if name is None or not (part or key.endswith(".alpha")):
            unknown[spelled] = None
            continue
        factors = found.setdefault(name, Factors(alpha=alpha))
        if part is None:
            factors.alpha = float(value)
        elif part["factor"].endswith(("A", "down")):
            factors.down = value
        else:
            factors.up = value
    if text:
        warnings.warn(
            f"lora.start: {path!r} has factors of text encoders too, which stay frozen here and without them: "
            f"{len(text)} tensors are left out",
            stacklevel=2,
        )
    return found, list(unknown)


def _split_of_flux(state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Factors in the names of Flux's own code, query, key and value in one, as diffusers names and splits them.

    Raises:
        ValueError: they cannot be split.
    """
    from diffusers import FluxPipeline

    named: dict[str, Tensor] = {}
    for key, value in state.items():  # into the names of sd-scripts, the one spelling that diffusers splits
        part = _FACTOR.fullmatch(key)
        layer, end = (part["layer"], part["factor"]) if part else (key.removesuffix(".alpha"), "alpha")
        if not _OF_FLUX.search(key):
            named[key] = value
            continue
        end = end if part is None else f"lora_{'down' if end.endswith(('A', 'down')) else 'up'}.weight"
        named[f"lora_unet_{_plain(layer).replace('.', '_')}.{end}"] = value
    try:
        return FluxPipeline.lora_state_dict(named)
    except Exception as error:  # of many kinds: other widths, keys that it does not know
        raise ValueError(
            f"lora.start: expected factors of Flux in {path!r}, of widths that diffusers splits, got others: {error}"
        ) from error


def _plain(spelled: str) -> str:
    begin = next((begin for begin in _PREFIXES if spelled.startswith(begin)), "")
    return spelled[len(begin) :]


def _state(path: str) -> tuple[dict[str, Tensor], float | None]:
    """The tensors of a file, and the alpha that it or the adapter_config.json beside it says of all layers."""
    metadata: dict[str, Any] = {}
    beside = Path(path).with_name("adapter_config.json")
    try:
        if path.endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        if not metadata and beside.is_file():
            metadata = json.loads(beside.read_text())
    except Exception as error:  # of many kinds: no such file, another one, one with code in it
        raise ValueError(f"lora.start: expected a file of LoRA factors alone at {path!r}: {error}") from error
    alpha = next((value for name, value in metadata.items() if name.endswith("lora_alpha")), None)
    return state, None if alpha is None else float(alpha)


def _put(layer: Any, factors: Factors, name: str, path: str, rank: int) -> None:
    down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    if factors.down is None or factors.up is None:
        raise ValueError(f"lora.start: expected both factors of {name} in {path!r}, got one")
    if len(factors.down) != rank:
        raise ValueError(f"lora.rank: expected {len(factors.down)}, as {name} has in {path!r}, got {rank}")
    if factors.down.numel() != down.numel() or factors.up.numel() != up.numel():
        raise ValueError(
            f"lora.start: expected factors of {tuple(down.shape)} and {tuple(up.shape)} of {name}, got "
            f"{tuple(factors.down.shape)} and {tuple(factors.up.shape)} in {path!r}; they are of another base model"
        )
    scale = (1.0 if factors.alpha is None else factors.alpha / rank) / layer.scaling[_ADAPTER]
    with torch.no_grad():
        down.copy_(factors.down.reshape(down.shape))
        up.copy_(factors.up.reshape(up.shape).float() * scale)
