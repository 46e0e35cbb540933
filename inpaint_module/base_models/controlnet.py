"""A ControlNet beside a frozen base model: its condition, its options, how it is made, and how both are called."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inpaint_module.base_models.denoiser_call import ControlNetInputs, DenoiserCall
from inpaint_module.base_models.layout import BLACK, Condition, Layout, pack
from inpaint_module.base_models.lora import LoRA, freeze_unread, frozen_sha256
from inpaint_module.encoder import InpaintEncoder, InpaintLatents
from inpaint_module.randomness import Stream, key, uniform
from inpaint_module.weights import weightless

CONDITION = "controlnet_cond"  # the condition, among those of a denoiser


class ControlNetCondition(Layout, Condition):
    """A condition made of latents and mask cells."""

    def from_batch(self, encoder: InpaintEncoder, images: Tensor, masks: Tensor, latents: InpaintLatents) -> Tensor:
        """Of the latents alone, in their dtype."""
        return self(latents.samples, latents)

    def __call__(self, noisy: Tensor, latents: InpaintLatents) -> Tensor:
        """The condition, from the encoder's result; of the noisy latents (B, C, h, w) it takes dtype and device."""
        return self.assemble(*self._parts(noisy, latents))

    @abstractmethod
    def assemble(self, cells: Tensor, masked: Tensor) -> Tensor:
        """The condition from mask cells (B, 1, h, w), 1 = inpaint, and masked image (B, C, h, w)."""


class KeptMaskCondition(ControlNetCondition):
    """Masked image, mask (1 = keep), hole black: C + 1 channels, of several ControlNets."""

    fill = BLACK

    def assemble(self, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, C + 1, h, w)."""
        return torch.cat([masked, 1 - cells], dim=1)

    def in_channels(self, channels: int) -> int:
        """C + 1."""
        return channels + 1


class PackedKeptMaskCondition(KeptMaskCondition):
    """The same in tokens of 2 x 2 latents, 4 (C + 1) channels."""

    multiple = 2

    def assemble(self, cells: Tensor, masked: Tensor) -> Tensor:
        """To (B, h/2 * w/2, 4 (C + 1))."""
        return pack(super().assemble(cells, masked))

    def in_channels(self, channels: int) -> int:
        """4 (C + 1)."""
        return 4 * super().in_channels(channels)


class ControlNetOptions:
    """A ControlNet beside a frozen base model.

    Args:
        path: a ControlNet's folder or hub name, to go on from; None for a new one, made from the base model's weights.
        subfolder: folder inside `path`.
        scale: what its residuals are multiplied by, in training and sampling; call the pipeline with the same
            `controlnet_conditioning_scale`.
        dropout: share of samples, 0..1, whose mask covers the whole picture: the condition tells nothing of it.
        channels: of a token of its condition, for Flux: 64 for that of diffusers' pipeline, which is told the masked
            image alone; 68 for alimama's, which is told the mask too. None for what the one at `path` has, or for a
            new one 64. For other base models there is one kind.
        layers: blocks of a new ControlNet of a transformer; None for 12 of SD3, and 4 of Flux, which has 2.5 times as
            many single ones, as diffusers makes them; fewer if the base model has fewer. A U-Net's has all.
        seed: of what the base model has no weights for.

    Raises:
        ValueError: a share outside 0..1, or fewer than 1 layer.
    """

    # no dataclass: jsonargparse does not parse one twice, as overlays need
    def __init__(
        self,
        path: str | None = None,
        subfolder: str | None = None,
        *,
        scale: float = 1.0,
        dropout: float = 0.0,
        channels: int | None = None,
        layers: int | None = None,
        seed: int = 0,
    ):
        if not 0 <= dropout <= 1:
            raise ValueError(f"base.controlnet.dropout: expected a share in 0..1, got {dropout}")
        if layers is not None and layers < 1:
            raise ValueError(f"base.controlnet.layers: expected at least 1, or null, got {layers}")
        self.path, self.subfolder, self.scale, self.dropout = path, subfolder, scale, dropout
        self.channels, self.layers, self.seed = channels, layers, seed


@dataclass(frozen=True)
class ControlNetKind:
    """What a family says of its ControlNets.

    Attributes:
        class_name: of diffusers.
        make: a new one from the base model, with the given number of layers; its outputs start at zero.
        condition: what it gets beside the noisy latents.
        first_layer: the layer that takes the condition, by its name.
        cells: latent cells that this layer takes at once, beside those that the condition packs.
        link: gives a ControlNet what it shares with its frozen base model; None if they share nothing.
        model: gives the class that loads one, where it is no class of diffusers.
    """

    class_name: str
    make: Callable[[Any, int | None], nn.Module]
    condition: type[Condition]
    first_layer: str
    cells: int = 1
    link: Callable[[Any, Any], None] | None = None
    model: Callable[[], Any] | None = None

    def new(self, base: Any, options: ControlNetOptions, lora: LoRA | None = None) -> nn.Module:
        """A new ControlNet in float32, ready to train, with the base model's memory format and checkpointing.

        It draws no random numbers but those of its seed.

        Raises:
            ValueError: LoRA, which could teach it nothing.
        """
        if lora is not None:
            raise ValueError(
                "base.lora: expected null for a new ControlNet, whose outputs start at zero and must train whole; got "
                "LoRA: name a trained ControlNet with controlnet: {path: FOLDER}"
            )
        with torch.random.fork_rng(devices=[]), torch.device("meta") if weightless() else nullcontext():
            torch.manual_seed(options.seed)
            controlnet: Any = self.make(base, options.layers).float().train()
        freeze_unread(controlnet)
        if base.is_gradient_checkpointing:
            controlnet.enable_gradient_checkpointing()
        last = any(weight.ndim == 4 and not weight.is_contiguous() for weight in base.parameters())
        return controlnet.to(memory_format=torch.channels_last) if last else controlnet

    def check(self, controlnet: nn.Module, channels: int, path: str | None) -> None:
        """Refuse another kind, or one with another condition.

        Raises:
            ValueError: naming both.
        """
        name = type(controlnet).__name__
        if name != self.class_name:
            raise ValueError(f"base.controlnet.path: expected a {self.class_name}, got a {name} at {path!r}")
        layer: Any = controlnet.get_submodule(self.first_layer)
        found = layer.weight.shape[1] // self.cells
        if found != channels:
            raise ValueError(
                f"base.controlnet.path: expected a condition of {channels} channels, that of inpainting, in "
                f"{self.first_layer}, got {found} at {path!r}: a ControlNet for something else"
            )


def layers_of(asked: int | None, usual: int, most: int) -> int:
    """How many blocks a new ControlNet gets, of the `most` that its base model can give it.

    Raises:
        ValueError: more are asked for than there are.
    """
    if asked is not None and asked > most:
        raise ValueError(f"base.controlnet.layers: expected at most {most}, those of the base model, got {asked}")
    return min(usual, most) if asked is None else asked


class FrozenBase:
    """A base model that a ControlNet trains beside: without updates, in eval mode, in its own dtype.

    It is no `nn.Module`, for the reasons of `FrozenVAE`. Gradients go through it to the ControlNet.

    Args:
        model: a diffusers denoiser; frozen in place.
    """

    def __init__(self, model: nn.Module):
        self.model: Any = model.eval().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Move the weights; their dtype stays."""
        self.model.to(device)

    def fingerprint(self) -> bytes:
        """A sha256 over names, shapes, dtypes and evenly spaced values of all weights, 32 bytes."""
        return frozen_sha256(self.model)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenBase:
        return self


class Control:
    """What a ControlNet needs beside itself.

    Args:
        condition: what it gets beside the noisy latents.
        base: the frozen base model.
        scale: what its residuals are multiplied by.
        dropout: share of samples without a condition.
    """

    def __init__(self, condition: Condition, base: FrozenBase, scale: float = 1.0, dropout: float = 0.0):
        self.condition, self.base, self.scale, self.dropout = condition, base, scale, dropout

    def masks(self, masks: Tensor, seed: int, positions: Tensor) -> Tensor:
        """The masks (B, 1, H, W), bool, of a training batch: of dropped samples over the whole picture.

        Which ones is a function of (seed, position) alone.
        """
        if not self.dropout:
            return masks
        dropped = uniform(key(seed, positions, Stream.CONDITION_DROP), 1)[:, 0] < self.dropout
        return masks | dropped.view(-1, 1, 1, 1)


class ControlNetCall(DenoiserCall):
    """Calls a ControlNet, and then the frozen base model with what it said.

    Args:
        call: how the base model is called.
        control: it, and how strong the ControlNet is.
    """

    def __init__(self, call: DenoiserCall, control: Control):
        self.call, self.control, self.even_steps = call, control, call.even_steps

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """See `DenoiserCall.guided`."""
        return self.call.guided(conditional, unconditional, scale)

    def shift(self, size: tuple[int, int], steps: int) -> float | None:
        """See `DenoiserCall.shift`."""
        return self.call.shift(size, steps)

    def __call__(
        self, denoiser: Any, inputs: Tensor, timesteps: Tensor, conditions: Mapping[str, Any], size: tuple[int, int]
    ) -> Tensor:
        """See `DenoiserCall`; `denoiser` is the ControlNet, and `conditions` hold its condition too."""
        others = {name: value for name, value in conditions.items() if name != CONDITION}
        given = ControlNetInputs(inputs, timesteps, others, conditions[CONDITION], self.control.scale, size)
        said = self.call.residuals(denoiser, given)
        return self.call(self.control.base.model, inputs, timesteps, {**others, **said}, size)
