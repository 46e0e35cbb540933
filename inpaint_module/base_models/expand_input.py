"""A base model's first layer grows to a layout's channels without changing what it computes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIRST_LAYERS = ("conv_in", "pos_embed.proj", "patch_embed.proj", "x_embedder", "img_in")


def grow_input_channels(denoiser: nn.Module, channels: int, base: int | None = None) -> nn.Module:
    """Give a base model the input channels of a layout, in place; the new ones start at zero.

    At step 0 the model's output on `layout(noisy, latents)` equals the base model's on `noisy`, bit for bit, since
    every layout of a denoiser puts the noisy latents first. Call it before the optimizer is made. The config follows,
    so that `save_pretrained` and `from_pretrained` round-trip. A model that has `channels` already is left as it is.

    Args:
        denoiser: UNet2DModel, UNet2DConditionModel, SD3Transformer2DModel, FluxTransformer2DModel or alike.
        channels: `layout.in_channels(C)`: 9 for Stable Diffusion, 33 for SD3, 384 for Flux Fill.
        base: input channels of the base model; None for as many as it puts out, which fits all but models that also
            predict a variance, and Qwen-Image, which counts packed channels at its input only.

    Returns:
        The denoiser.

    Raises:
        ValueError: a model whose first layer is not known, or whose input channels are not the base model's.
    """
    config = getattr(denoiser, "config", {})
    if config.get("in_channels") == channels:
        return denoiser
    name, layer = first_layer(denoiser)
    found = layer.weight.shape[1]
    if found == channels:
        return denoiser
    outputs = config.get("out_channels") or vars(denoiser).get("out_channels")
    expected = base or outputs or found
    if found != expected:
        raise ValueError(
            f"{type(denoiser).__name__}.{name}: expected the {expected} input channels of a base model or the "
            f"{channels} of the layout, got {found}; if all {found} are noisy latents, pass base={found}"
        )
    if found > channels:
        raise ValueError(f"{type(denoiser).__name__}.{name} has {found} input channels, more than {channels}")
    grown = GrownConv2d(layer, channels) if isinstance(layer, nn.Conv2d) else GrownLinear(layer, channels)
    denoiser.set_submodule(name, grown)
    if config:
        update = {"in_channels": channels, "out_channels": outputs}  # where None had meant: as many as come in
        denoiser.register_to_config(**{key: value for key, value in update.items() if key in config})  # type: ignore[operator]
    return denoiser


def check_input_channels(denoiser: nn.Module, channels: int) -> None:
    """Refuse a denoiser that cannot take a layout's channels; one whose first layer is not known passes.

    Raises:
        ValueError: another number of input channels.
    """
    try:
        name, layer = first_layer(denoiser)
    except ValueError:
        return
    if layer.weight.shape[1] != channels:
        raise ValueError(
            f"{type(denoiser).__name__}.{name}: expected {channels} channels, got {layer.weight.shape[1]}; "
            f"inpaint_module.base_models.grow_input_channels(denoiser, {channels}) makes them from a base model's"
        )


class GrownConv2d(nn.Conv2d):
    """A convolution with new input channels at zero, summed apart from the old ones.

    One convolution over all channels may sum the same products in another order: in float16 on a CPU most sizes then
    differ in the last bit. Apart, the first sum is the base layer's own, in any dtype on any device. The parameters
    are those of a plain convolution, which is what loads them after saving.

    Args:
        base: the layer to grow; its bias is kept, its weight is copied.
        channels: input channels, more than the base layer's.
    """

    def __init__(self, base: nn.Conv2d, channels: int):
        super().__init__(
            channels,
            base.out_channels,
            base.kernel_size,  # type: ignore[arg-type]
            base.stride,  # type: ignore[arg-type]
            base.padding,  # type: ignore[arg-type]
            base.dilation,  # type: ignore[arg-type]
            bias=False,
            padding_mode=base.padding_mode,
            device="meta",  # draws no random numbers
        )
        self.base_channels = base.in_channels
        self.weight, self.bias = _widened(base.weight, channels), base.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to what a plain convolution gives."""
        old, new = x.tensor_split([self.base_channels], dim=1)
        kept, grown = self.weight.tensor_split([self.base_channels], dim=1)
        return self._conv_forward(old, kept, self.bias) + self._conv_forward(new, grown, None)


class GrownLinear(nn.Linear):
    """As `GrownConv2d`, for a patch embedder of tokens.

    Args:
        base: the layer to grow; its bias is kept, its weight is copied.
        channels: input channels, more than the base layer's.
    """

    def __init__(self, base: nn.Linear, channels: int):
        super().__init__(channels, base.out_features, bias=False, device="meta")
        self.base_channels = base.in_features
        self.weight, self.bias = _widened(base.weight, channels), base.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) to what a plain linear layer gives."""
        old, new = x.tensor_split([self.base_channels], dim=-1)
        kept, grown = self.weight.tensor_split([self.base_channels], dim=1)
        # contiguous: in half precision strided views are summed otherwise than the base layer's tensors
        return F.linear(old.contiguous(), kept.contiguous(), self.bias) + F.linear(new, grown)


def first_layer(denoiser: nn.Module) -> tuple[str, nn.Conv2d | nn.Linear]:
    """The name and the layer that takes the latents, by its usual names.

    Raises:
        ValueError: there is none, or its width is not what the config says.
    """
    modules = dict(denoiser.named_modules())
    width = getattr(denoiser, "config", {}).get("in_channels")
    for name in FIRST_LAYERS:
        layer = modules.get(name)
        if (
            isinstance(layer, nn.Conv2d | nn.Linear)
            and width in (None, layer.weight.shape[1])
            and getattr(layer, "groups", 1) == 1
        ):
            return name, layer
    raise ValueError(
        f"{type(denoiser).__name__} has no first layer that can grow: expected a Conv2d or Linear named "
        f"{', '.join(FIRST_LAYERS[:-1])} or {FIRST_LAYERS[-1]}, as wide as config.in_channels ({width})"
    )


def _widened(weight: Tensor, channels: int) -> nn.Parameter:
    """(out, in, ...) with zeros appended up to in = channels."""
    missing = weight.new_zeros(len(weight), channels - weight.shape[1], *weight.shape[2:])
    return nn.Parameter(torch.cat([weight.detach(), missing], dim=1), requires_grad=weight.requires_grad)
