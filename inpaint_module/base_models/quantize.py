"""Frozen weights in 4 or 8 bits: the base model under a LoRA, and text encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_ROWS: dict[str, tuple[torch.dtype, float]] = {  # dtype of the codes, largest number that one stands for
    "int8wo": (torch.int8, 127.5),
    "float8wo": (torch.float8_e4m3fn, 448.0),
}
KINDS = ("nf4", "int8", *_ROWS)
_BYTES = {
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
    "int8": 1.0,
    "int8wo": 1.0,
    "float8wo": 1.0,
}  # of a number: codes, scales, and their scales
_KEPT = ("wo",)  # T5 computes it in the dtype of its weight, as in transformers' own


class CountedLinear(nn.Linear):
    """A layer on the meta device that will be quantized: it knows its size, and computes nothing."""

    kind: str

    def held_bytes(self) -> int:
        """Bytes of its weight, once it is quantized."""
        return round(_BYTES.get(self.kind, 1.0) * self.weight.numel())


def check_kind(kind: str | None) -> None:
    """Refuse what cannot be.

    Raises:
        ValueError: an unknown kind, or bitsandbytes is not installed.
    """
    if kind is None:
        return
    if kind not in KINDS:
        raise ValueError(f"quantize must be null or one of {', '.join(KINDS)}; got {kind!r}")
    if kind in _ROWS:
        return
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ValueError(f"quantize: {kind} needs bitsandbytes: pip install 'inpaint-module[lowmem]'") from error


def quantize(model: nn.Module, kind: str | None) -> None:
    """Put the weights of a model's linear layers into 4 or 8 bits, in place, where the model is; they are frozen then.

    Layers outside of its blocks, such as the first one, keep theirs, as do convolutions, norms and biases.

    Args:
        model: a denoiser of diffusers or a text encoder of transformers.
        kind: nf4 (Dettmers et al. 2023, "QLoRA", scales in 8 bits too) or int8 (Dettmers et al. 2022, "LLM.int8()"),
            by bitsandbytes; int8wo or float8wo, of weights alone with a scale for each row, as torchao's
            Int8WeightOnlyConfig and Float8WeightOnlyConfig; None leaves it alone.

    Raises:
        ValueError: an unknown kind, bitsandbytes is not installed, or there is no such layer.
    """
    check_kind(kind)
    if kind is None:
        return
    found = [
        (name, layer)
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and ("block" in name or "layers" in name) and name.rpartition(".")[2] not in _KEPT
    ]
    if not found:
        raise ValueError(f"quantize: expected linear layers in blocks, got none in {type(model).__name__}")
    for name, layer in found:
        model.set_submodule(name, _quantized(layer, kind))
    if kind in _ROWS:
        return
    # by which peft knows what to put its factors beside
    setattr(model, "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit", True)


class RowScaledLinear(nn.Linear):
    """A frozen linear layer in 8 bits with a scale for each row; it computes in the dtype that its weight had.

    torchao's own tensors know no autocast and cannot be reshaped, as fingerprints must, and a row of zeros in float8
    becomes NaN with them.
    """

    def __init__(self, layer: nn.Linear, kind: str):
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.dtype, (self.codes, largest) = layer.weight.dtype, _ROWS[kind]
        weight = layer.weight.data.float()
        scale = (weight.abs().amax(1, keepdim=True) / largest).clamp_min(torch.finfo(torch.float32).eps)
        codes = weight * (1.0 / scale)
        codes = codes.round().clamp(-128, 127) if self.codes == torch.int8 else codes.clamp(-largest, largest)
        # as bytes: what looks at dtypes, such as peft, takes no float8 for one to train in
        self.weight = nn.Parameter(codes.to(self.codes).view(torch.int8), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = layer.bias

    def plain_weight(self) -> Tensor:
        """The numbers that it computes with, in the dtype that they had."""
        return (self.weight.view(self.codes).float() * self.scale).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), of the dtype of `x`."""
        made = _Product.apply(x.to(self.dtype), self)
        return (made if self.bias is None else made + self.bias.to(made)).to(x.dtype)


class _Product(torch.autograd.Function):
    """x W^T, of which the backward pass holds the codes alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: RowScaledLinear) -> Tensor:
        """(..., in) to (..., out)."""
        ctx.layer = layer
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(x, layer.plain_weight())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """For `x` alone."""
        with torch.autocast(grad.device.type, enabled=False):
            return grad @ ctx.layer.plain_weight(), None


def _quantized(layer: nn.Linear, kind: str) -> nn.Module:
    if layer.weight.is_meta:
        layer.__class__, layer.kind = CountedLinear, kind  # type: ignore[assignment]
        return layer.requires_grad_(False)
    if kind in _ROWS:
        return RowScaledLinear(layer, kind).requires_grad_(False)
    import bitsandbytes as bnb

    sizes, weight = (layer.in_features, layer.out_features), layer.weight.data
    made: Any
    if kind == "nf4":
        made = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made)
    else:
        made = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, device="meta")
        made.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    made.bias = layer.bias
    return made.to(weight.device)


def dequantize(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Plain linear layers again, in place, with the numbers that the quantized ones computed with.

    Args:
        model: of `quantize`, or any other, which stays as it is.
        dtype: of the weights; None for what they were quantized from, or bfloat16 where nothing says it.
    """
    for name, layer in list(model.named_modules()):
        if _is_quantized(layer):
            weight = _plain_weight(layer).to(dtype or _dtype_before(layer))
            made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            made.weight, made.bias = nn.Parameter(weight, requires_grad=False), layer.bias
            model.set_submodule(name, made)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        vars(model).pop(name, None)


def quantized_state(model: nn.Module) -> dict[str, Tensor]:
    """What quantized layers hold beside their parameters, by name: the scales."""
    found: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if _is_quantized(layer) and not isinstance(layer, RowScaledLinear):  # whose scales are parameters
            state = layer.weight.quant_state.as_dict() if hasattr(layer.weight, "quant_state") else _scales(layer)
            found |= {f"{name}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    return found


def is_quantized(model: nn.Module) -> bool:
    """Whether any of a model's layers is, or will be."""
    return any(_is_quantized(layer) or isinstance(layer, CountedLinear) for layer in model.modules())


def _is_quantized(layer: Any) -> bool:
    theirs = type(layer).__module__.startswith("bitsandbytes.")
    return isinstance(layer, RowScaledLinear) or (theirs and type(layer).__name__ in ("Linear4bit", "Linear8bitLt"))


def _scales(layer: Any) -> dict[str, Tensor]:
    """One for each row of a layer in int8, which moves them at its first call."""
    return {"scales": layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB}


def _plain_weight(layer: Any) -> Tensor:
    """The numbers, float32 or as the quantized state says."""
    if isinstance(layer, RowScaledLinear):
        return layer.plain_weight()
    if hasattr(layer.weight, "quant_state"):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return layer.weight.data.float() * (_scales(layer)["scales"].float() / 127).unsqueeze(1)


def _dtype_before(layer: Any) -> torch.dtype:
    if isinstance(layer, RowScaledLinear):
        return layer.dtype
    state = getattr(layer.weight, "quant_state", None)
    if state is not None:
        return state.dtype
    return layer.bias.dtype if layer.bias is not None else torch.bfloat16
