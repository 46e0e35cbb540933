"""LoRA: train low-rank factors beside frozen weights, through peft as diffusers has it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from inpaint_module.base_models.expand_input import GrownConv2d, GrownLinear, first_layer
from inpaint_module.base_models.lora_files import load_factors
from inpaint_module.base_models.quantize import dequantize, quantized_state
from inpaint_module.weights import weightless

ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    "to_qkv_mlp_proj",  # of Flux.2's single blocks, which have these and more in one
)
FROZEN_SHA256 = "frozen_sha256"
_SAMPLES = 64  # values of each frozen tensor that enter the hash


class LoRA:
    """Low-rank factors beside a denoiser's frozen weights.

    Args:
        rank: of the factors.
        alpha: their product is scaled by alpha / rank; None for alpha = rank.
        target_modules: ends of the names of layers that get factors; None for all projections of attention.
        train_first_layer: train the first layer whole; None: if it was grown, as nothing else could ever see the mask.
        seed: of the factors' start.
        start: a file of factors to go on from, in the names of diffusers, PEFT or kohya's sd-scripts; its rank must be
            `rank`, and what it scales by is kept. None for new factors.

    Raises:
        ValueError: a rank below 1.
    """

    # no dataclass: jsonargparse does not parse one twice, as overlays need
    def __init__(
        self,
        rank: int = 16,
        *,
        alpha: int | None = None,
        target_modules: list[str] | None = None,
        train_first_layer: bool | None = None,
        seed: int = 0,
        start: str | None = None,
    ):
        if rank < 1:
            raise ValueError(f"lora.rank: expected at least 1, got {rank}")
        self.rank, self.alpha = rank, rank if alpha is None else alpha
        self.target_modules = list(ATTENTION if target_modules is None else target_modules)
        self.train_first_layer, self.seed, self.start = train_first_layer, seed, start


def add_lora(denoiser: Any, lora: LoRA) -> Any:
    """Freeze a denoiser and add low-rank factors, in place; at step 0 its output does not change.

    Hu et al. 2021, "LoRA". What trains is float32 even beside bfloat16 weights, for which `trainer.precision` must be
    a mixed one. From here on the denoiser's state dict holds what trains, and a hash by which it knows its base model.

    Raises:
        ValueError: peft is not installed, no layer has such a name, or the file to go on from does not fit.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ValueError("lora needs peft: pip install 'inpaint-module[text]'") from error
    targets = lora.target_modules
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lora.seed)
        try:
            denoiser.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets))
        except ValueError as error:
            raise ValueError(
                f"lora.target_modules: expected ends of names of layers, got {targets}: {error}"
            ) from error
    if lora.start is not None and not weightless():
        load_factors(denoiser, lora.start, lora.rank)
    _train_first_layer(denoiser, lora.train_first_layer)
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    # torch.distributed's get_model_state_dict looks every name of a state up in the module, the hash's too
    setattr(denoiser, FROZEN_SHA256, None)
    denoiser.register_state_dict_post_hook(_keep_what_trains)
    denoiser.register_load_state_dict_pre_hook(_add_what_is_frozen)
    return denoiser


def freeze_unread(denoiser: nn.Module) -> None:
    """Freeze what no gradient reaches, in place: what the last block of SD3's and Qwen-Image's kind makes of the text.

    Nothing reads it, and DDP stops at weights that train and have no gradient.
    """
    blocks, later = (getattr(denoiser, name, None) for name in ("transformer_blocks", "single_transformer_blocks"))
    if not isinstance(blocks, nn.ModuleList) or later:
        return
    for name, weight in blocks[-1].named_parameters():
        if name.startswith(("ff_context.", "txt_mlp.", "attn.to_add_out.")):
            weight.requires_grad_(False)


def has_lora(denoiser: nn.Module) -> bool:
    """Whether `add_lora` has been here."""
    return bool(getattr(denoiser, "peft_config", None))


def lora_weights(denoiser: nn.Module) -> dict[str, Tensor]:
    """The factors alone, by the names that peft saves them with."""
    from peft.utils import get_peft_model_state_dict

    return get_peft_model_state_dict(denoiser, denoiser.state_dict())


def trains_first_layer(denoiser: nn.Module) -> bool:
    """Whether there is more to save than the factors."""
    return any(weight.requires_grad and "lora_" not in name for name, weight in denoiser.named_parameters())


@torch.no_grad()
def remove_lora(denoiser: Any, *, fuse: bool = False) -> Any:
    """The plain model again, in place, with the factors in its weights (`fuse`) or without them.

    Quantized weights are brought back to plain ones first, which then take the factors without a second rounding.
    """
    added = {}
    if fuse and quantized_state(denoiser):
        layers = {name: each for name, each in denoiser.named_modules() if hasattr(each, "get_delta_weight")}
        added = {name: each.get_delta_weight("default") for name, each in layers.items()}
    elif fuse:
        denoiser.fuse_lora()
    denoiser.unload_lora()
    dequantize(denoiser)
    for name, delta in added.items():
        weight = denoiser.get_submodule(name).weight
        weight.copy_((weight.float() + delta.float()).to(weight.dtype))
    delattr(denoiser, FROZEN_SHA256)
    denoiser._state_dict_hooks.clear()
    denoiser._load_state_dict_pre_hooks.clear()
    return denoiser


def frozen_sha256(denoiser: nn.Module) -> bytes:
    """The sha256 over names, shapes, dtypes and evenly spaced values of all that does not train, 32 bytes."""
    digest = hashlib.sha256()
    for name, value in sorted((_frozen(denoiser) | quantized_state(denoiser)).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().flatten()
        digest.update(flat[:: max(1, len(flat) // _SAMPLES)].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()


def _frozen(denoiser: nn.Module) -> dict[str, Tensor]:
    """Parameters without gradients, by name."""
    return {name: value for name, value in denoiser.named_parameters() if not value.requires_grad}


def _train_first_layer(denoiser: nn.Module, wanted: bool | None) -> None:
    if wanted is not None:
        first_layer(denoiser)[1].requires_grad_(wanted)
        return
    for layer in denoiser.modules():
        if isinstance(layer, GrownConv2d | GrownLinear):
            layer.requires_grad_(True)


def _keep_what_trains(denoiser: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    trained = {prefix + name for name, value in denoiser.named_parameters() if value.requires_grad}
    for name in [name for name in state if name.startswith(prefix) and name not in trained]:
        del state[name]
    state[prefix + FROZEN_SHA256] = torch.tensor(list(frozen_sha256(denoiser)), dtype=torch.uint8)


def _add_what_is_frozen(denoiser: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a state of what trains pass a strict load.

    Raises:
        ValueError: it was trained on another base model.
    """
    saved = state.pop(prefix + FROZEN_SHA256, None)
    if saved is None:
        return
    trained_on, here = bytes(saved.tolist()).hex(), frozen_sha256(denoiser).hex()
    if trained_on != here:
        raise ValueError(
            f"this LoRA was trained on a base model whose frozen weights have sha256 {trained_on[:16]}..., but the "
            f"denoiser holds {here[:16]}...; load the same base model in the same dtype, with the same lora options"
        )
    unsaved = {
        f"{path}.{name}".lstrip(".")
        for path, module in denoiser.named_modules()
        for name in module._non_persistent_buffers_set  # which no state dict has
    }
    for name, value in [*_frozen(denoiser).items(), *denoiser.named_buffers()]:
        if name not in unsaved:
            state.setdefault(prefix + name, value.detach())
