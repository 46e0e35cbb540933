"""What there is to say of a base model: the contract that each file of this folder fills in once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

from inpaint_module.base_models.controlnet import ControlNetKind
from inpaint_module.base_models.denoiser_call import DenoiserCall
from inpaint_module.base_models.layout import Condition, DenoiserLayout
from inpaint_module.base_models.text import FrozenTextEncoder, TextConditioning

WAYS = {
    "plain": "the base model as it is, for the pipelines that blend",
    "channels": "the denoiser's first layer grows and takes the mask and the masked image too",
    "edit": "the base model as it is, shown a reference picture, for the pipelines of edit models, which blend",
    "controlnet": "the base model is frozen, and a ControlNet trains that gets the mask and the masked image",
}


class TextOptions:
    """How a base model's text encoders are loaded and read.

    Args:
        dtype: of the weights: float32, bfloat16 or float16.
        length: tokens of a T5; None for the pipeline's default, 256 for SD3 and 512 for Flux.
        guidance: the guidance of a guidance-distilled Flux; None for 30 with `train: channels`, as `FluxFillPipeline`
            says, and 3.5 with `train: plain`, as diffusers' train_dreambooth_lora_flux.py. Serve with the same.
        t5: False leaves out the T5 of SD3, which the base model was trained to bear.
        clip_skip: layers that the CLIPs of Stable Diffusion, XL and 3 leave out at the end, as the argument of their
            pipelines; serve with the same. None for the default of each. Flux has none.
        quantize: nf4, int8, int8wo or float8wo: their linear layers in 4 or 8 bits; what they say moves.
        cache: a folder that `inpaint shards cache-text` has written for these options: embeddings are read from there,
            and the encoders are not loaded. Of Stable Diffusion, XL, 3 and Flux.
    """

    # no dataclass: jsonargparse does not parse one twice, as overlays need
    def __init__(
        self,
        *,
        dtype: str = "float32",
        length: int | None = None,
        guidance: float | None = None,
        t5: bool = True,
        clip_skip: int | None = None,
        quantize: str | None = None,
        cache: str | None = None,
    ):
        self.quantize, self.cache = quantize, cache
        self.dtype, self.length, self.guidance, self.t5, self.clip_skip = dtype, length, guidance, t5, clip_skip


def without_clip(name: str, options: TextOptions) -> None:
    """Refuse what only a CLIP has.

    Raises:
        ValueError: layers to skip.
    """
    if options.clip_skip is not None:
        raise ValueError(
            f"clip_skip: expected null for {name}, which reads no layer of a CLIP; got {options.clip_skip}"
        )


class TextFolder(Protocol):
    """The text encoders of a pipeline's folder, counted from 1."""

    index: Mapping[str, Any]

    def has(self, number: int) -> bool:
        """Whether there is one of this number."""

    def encoder(self, number: int, length: int | None = None) -> FrozenTextEncoder:
        """The tokenizer and the encoder of this number; `length` in tokens, None for the tokenizer's own."""

    def processor(self) -> Any:
        """What makes of captions and pictures the inputs of a text encoder that sees."""

    def transformer(self) -> Mapping[str, Any]:
        """The config of the transformer."""


@dataclass(frozen=True)
class Way:
    """One way of training a base model.

    Attributes:
        layout: the denoiser's input.
        pipeline: the class of diffusers that serves what was trained.
        guidance: the guidance of a guidance-distilled model, if the config does not say.
        controlnet: what trains instead of the denoiser; None for the denoiser.
        grown: beside a ControlNet, the layout of a base model that takes the mask and the masked image itself.
        channels: of a token of the ControlNet's condition, where there are several kinds of ControlNets.
        others: the same way with ControlNets of those.
        home: whose class the pipeline is.
    """

    layout: type[DenoiserLayout]
    pipeline: str
    guidance: float = 30.0
    controlnet: ControlNetKind | None = None
    grown: type[DenoiserLayout] | None = None
    channels: int | None = None
    others: tuple[Way, ...] = ()
    home: str = "diffusers"

    def with_channels(self, channels: int | None) -> Way:
        """The way of a ControlNet whose condition has so many channels; None for this one.

        Raises:
            ValueError: there is none.
        """
        kinds = (self, *self.others)
        for way in kinds:
            if channels in (None, way.channels):
                return way
        known = " or ".join(str(way.channels or "null") for way in kinds)
        raise ValueError(f"base.controlnet.channels: expected {known} beside this base model, got {channels}")

    def condition(self, reduce: str | None) -> Condition | None:
        """The ControlNet's condition; None without one."""
        kind = None if self.controlnet is None else self.controlnet.condition
        if kind is None or reduce is None or "reduce" not in signature(kind).parameters:
            return None if kind is None else kind()
        return kind(reduce)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Family:
    """All that is known of a base model, or of several that differ in weights alone.

    Attributes:
        name: as people call it.
        pipelines: how the class names of its pipelines begin, in `_class_name` of model_index.json. Of several
            families whose beginning fits, the longest is taken.
        text: what reads captions for it.
        read_text: makes that of a pipeline's folder.
        call: how its denoiser is called.
        ways: how it can be trained, by the words of `WAYS`.
    """

    name: str
    pipelines: tuple[str, ...]
    text: type[TextConditioning]
    read_text: Callable[[TextFolder, TextOptions], TextConditioning]
    call: DenoiserCall
    ways: Mapping[str, Way]

    def way(self, train: str) -> Way:
        """How it is trained in the way that a config names `train`.

        Raises:
            ValueError: it cannot be, naming the ways that it can.
        """
        if train not in self.ways:
            known = "; ".join(f"{name} ({WAYS[name]})" for name in self.ways)
            raise ValueError(f"base.train: {self.name} is trained by {known}; got {train!r}")
        return self.ways[train]
