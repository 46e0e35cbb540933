"""A base model as a config names it: by a folder or a hub name, or by parts made one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from diffusers import SchedulerMixin
from torch import nn

from inpaint_module.base_models.conditioning import Conditioning, NoConditioning
from inpaint_module.base_models.controlnet import Control, ControlNetCall, ControlNetOptions, FrozenBase
from inpaint_module.base_models.denoiser_call import DenoiserCall
from inpaint_module.base_models.expand_input import check_input_channels
from inpaint_module.base_models.families import family_of, serving_pipeline
from inpaint_module.base_models.family import Family, TextOptions, Way
from inpaint_module.base_models.layout import Condition, DenoiserLayout, Layout, denoiser_layout
from inpaint_module.base_models.loading import (
    load_denoiser,
    load_scheduler,
    model_config,
    pipeline_index,
    text_of,
)
from inpaint_module.base_models.lora import LoRA
from inpaint_module.base_models.single_file import folder_of
from inpaint_module.encoder import Fill, InpaintEncoder
from inpaint_module.objectives.timesteps import TimestepSampler
from inpaint_module.vae import load_vae


class ModelParts:
    """A model whose parts are made one by one, for what no folder holds: a small one trained from nothing, say.

    Args:
        denoiser: diffusers model.
        encoder: from image and mask to latents; `normalize` should be true.
        layout: the denoiser's input; a `DenoiserLayout`.
        scheduler: diffusers scheduler, for the noise in training and for sampling in validation.
        conditioning: frozen text encoders; null for a denoiser that takes input and timestep alone.
        call: how the denoiser is called; null for a U-Net.
        timesteps: how noisy the training samples are, unless the objective says; null for uniform.

    Attributes:
        path: of the base model, if it is of a folder or hub name.
        home: of whom the class is that serves it.
        control: where `denoiser` is a ControlNet, the frozen base model and the ControlNet's condition.

    Raises:
        ValueError: the layout is a ControlNet's or for a loop of your own, the encoder's fill or space is not the
            layout's, or the denoiser takes other channels than it makes.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        encoder: InpaintEncoder,
        layout: Layout,
        scheduler: SchedulerMixin,
        *,
        conditioning: Conditioning | None = None,
        call: DenoiserCall | None = None,
        timesteps: TimestepSampler | None = None,
    ):
        self.denoiser: Any = denoiser
        self.encoder, self.layout, self.scheduler = encoder, denoiser_layout(layout), scheduler
        self.conditioning, self.call = conditioning or NoConditioning(), call or DenoiserCall()
        self.path: str | None = None
        self.timesteps, self.home = timesteps, "diffusers"
        self.control: Control | None = None
        if self.layout.own_loop:
            raise ValueError(
                f"layout: {type(layout).__name__} is for a loop of your own: its model learns more than "
                "InpaintDiffusion trains; for plain inpainting of 9 channels take StableDiffusionLayout"
            )
        layout.check(encoder)
        check_input_channels(denoiser, layout.in_channels(encoder.vae.channels))

    @property
    def pipeline(self) -> str | None:
        """The name of the diffusers class that serves it; None for a model without text, for which there is none.

        Raises:
            ValueError: no pipeline of the base model feeds its denoiser so.
        """
        return serving_pipeline(self.conditioning, self.layout)


class VAEOptions:
    """How a base model's VAE is loaded.

    Args:
        path: another autoencoder's folder or hub name, or "embedded:vae"; None for the base model's own.
        subfolder: folder inside `path`.
        dtype: float32 or bfloat16; float16 where the VAE bears it. None for float32, unless the run's `speed` chooses
            bfloat16.
        compiled: compile its encode, which the first batch of each shape waits for; latents move by rounding.
    """

    # no dataclass: jsonargparse does not parse one twice, as overlays need
    def __init__(
        self,
        path: str | None = None,
        subfolder: str | None = None,
        *,
        dtype: str | None = None,
        compiled: bool = False,
    ):
        self.path, self.subfolder, self.dtype, self.compiled = path, subfolder, dtype, compiled

    def load(self, base: str) -> Any:
        """The VAE, of the pipeline at `base` if no other is named."""
        place = (base, "vae") if self.path is None else (self.path, self.subfolder)
        return load_vae(*place, dtype=self.dtype, compiled=self.compiled)


class EncoderOptions:
    """How images and masks come to latents, beside what the base model says: fill and scaling.

    Args:
        vae: how the VAE is loaded; None for the base model's own in float32.
        grow_mask_by: as of `InpaintEncoder`; 0, as diffusers' pipelines do not grow.
        radius: as there.
        cells: as there.
        posterior: as there; the pipelines sample it.
        sizing: as there.
        max_batch: as there.
    """

    def __init__(
        self,
        *,
        vae: VAEOptions | None = None,
        grow_mask_by: int = 0,
        radius: int | None = None,
        cells: int | None = None,
        posterior: str = "mode",
        sizing: str = "comfyui",
        max_batch: int | None = None,
    ):
        self.vae = vae or VAEOptions()
        self.arguments = {"grow_mask_by": grow_mask_by, "radius": radius, "cells": cells, "posterior": posterior}
        self.arguments |= {"sizing": sizing, "max_batch": max_batch}

    def make(self, base: str, fill: Fill) -> InpaintEncoder:
        """The encoder, with the VAE of the pipeline at `base`."""
        arguments: dict[str, Any] = self.arguments
        return InpaintEncoder(self.vae.load(base), fill=fill, normalize=True, **arguments)


def encoder_for(
    path: str, train: str = "channels", options: EncoderOptions | None = None, config: str | None = None
) -> InpaintEncoder:
    """The encoder alone of `BaseModel(path, train, encoder=options, config=config)`."""
    path = folder_of(path, config)
    way = family_of(pipeline_index(path), path).way(train)
    return (options or EncoderOptions()).make(path, (way.controlnet.condition if way.controlnet else way.layout).fill)


class BaseModel(ModelParts):
    """A base model from a pipeline's folder, ready to train in one of the ways that people train it.

    What it is says its `model_index.json`; encoder, layout, scheduler, text encoders and the denoiser's call follow, as
    the diffusers pipeline that will serve the result has them.

    Args:
        path: a pipeline's folder or hub name; or a single file, .safetensors or .ckpt, in the original names.
        config: of a single file, the local folder of a pipeline of the same base model, for configs, tokenizers, and
            the weights of what the file lacks. The file is converted once, to a folder in INPAINT_MODELS of the
            environment, or ~/.cache/inpaint_module/models.
        train: channels: the first layer grows, its new channels at zero, and eats the mask and the masked image too.
            plain: the base model as it is, for the pipelines that blend; validation and prediction blend as they do.
            edit: the base model as it is, shown a reference picture too, for the pipelines of edit models, which blend.
            controlnet: a ControlNet, which gets the mask and the masked image, beside the frozen base model.
        dtype: of the denoiser's weights: float32 to train them all, bfloat16 to halve the memory of those that LoRA
            or a ControlNet leaves frozen. What the step computes in is the trainer's `precision`.
        lora: train low-rank factors instead of the weights; with `controlnet` those of a ControlNet that is loaded.
        quantize: nf4, int8, int8wo or float8wo: the linear layers of the frozen base model in 4 or 8 bits; with `lora`
            or `controlnet`.
        controlnet: of `train: controlnet`: which one, and how strong.
        reference: of `train: edit`: masked, the image with its hole filled, which is the default; image, the whole
            one, of samples with a target picture; or picture, NAME.reference.png of each, not of Qwen-Image-Edit.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        channels_last: memory format of convolutions. Measure it.
        encoder: how images and masks come to latents, where it is to be otherwise than in the pipeline.
        reduce: how the mask comes to the latent grid, see `Layout`; the pipelines take nearest. Not of Flux.
        scheduler_changes: entries of the scheduler's config to replace, such as `{prediction_type: v_prediction}`.
        text: how the text encoders are loaded and read.

    Raises:
        ValueError: no pipeline there, of a base model that is not known, or one that is not trained in this way; an
            option out of its range.
    """

    def __init__(
        self,
        path: str,
        train: str = "channels",
        *,
        dtype: str = "float32",
        lora: LoRA | None = None,
        quantize: str | None = None,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        encoder: EncoderOptions | None = None,
        reduce: str | None = None,
        scheduler_changes: dict[str, Any] | None = None,
        text: TextOptions | None = None,
        controlnet: ControlNetOptions | None = None,
        reference: str | None = None,
        config: str | None = None,
    ):
        path = folder_of(path, config)
        self.family = family_of(pipeline_index(path), path)
        self.way = _way(self.family, train, controlnet)
        if quantize is not None and lora is None and self.way.controlnet is None:
            expected = "expected null, or base.lora beside it, as weights in few bits do not train"
            raise ValueError(f"base.quantize: {expected}; got {quantize}")
        layout, condition = _layout(self.way.layout, reduce, reference), self.way.condition(reduce)
        made = (encoder or EncoderOptions()).make(path, (condition or layout).fill)
        if self.way.grown is not None:
            grown = _layout(self.way.grown, reduce)
            if model_config(path, "unet").get("in_channels") == grown.in_channels(made.vae.channels):
                layout = grown
        load = partial(
            load_denoiser, dtype=dtype, gradient_checkpointing=gradient_checkpointing, channels_last=channels_last
        )
        channels = layout.in_channels(made.vae.channels)
        denoiser = load(path, in_channels=channels, lora=None if condition else lora, quantize=quantize)
        scheduler = load_scheduler(path, changes=scheduler_changes)
        conditioning = _text(path, text, self.way.guidance)
        super().__init__(denoiser, made, layout, scheduler, conditioning=conditioning, call=self.family.call)
        self.path, self.home = path, self.way.home
        if condition is not None:
            self._put_controlnet_beside(condition, controlnet or ControlNetOptions(), lora, load)

    def _put_controlnet_beside(
        self, condition: Condition, options: ControlNetOptions, lora: LoRA | None, load: Callable[..., nn.Module]
    ) -> None:
        """Freeze the denoiser, and put a new or a loaded ControlNet in its place."""
        condition.check(self.encoder)
        kind, base = self.way.controlnet, FrozenBase(self.denoiser)
        assert kind is not None
        self.control = Control(condition, base, options.scale, options.dropout)
        self.call = ControlNetCall(self.call, self.control)
        if options.path is None:
            self.denoiser = kind.new(base.model, options, lora)
        else:
            changes = {} if lora else {"dtype": "float32"}
            model = {} if kind.model is None else {"model": kind.model()}
            self.denoiser = load(options.path, subfolder=options.subfolder, lora=lora, **changes, **model)
            kind.check(self.denoiser, condition.in_channels(self.encoder.vae.channels), options.path)
        if kind.link is not None:
            kind.link(self.denoiser, base.model)

    @property
    def pipeline(self) -> str:
        """The name of the diffusers class that serves it."""
        return self.way.pipeline


def _way(family: Family, train: str, options: ControlNetOptions | None) -> Way:
    """The way of training that is asked for, with the ControlNet that is."""
    way = family.way(train)
    if options is None:
        return way
    if way.controlnet is None:
        raise ValueError(f"base.controlnet: expected null with train: {train}, which trains none; got options")
    return way.with_channels(_condition_channels(options, way))


def _condition_channels(options: ControlNetOptions, way: Way) -> int | None:
    """Of the condition of a ControlNet of several kinds: as it is asked for, or as the one to go on from has."""
    if options.path is None or not way.others:
        return options.channels
    extra = model_config(options.path, options.subfolder).get("extra_condition_channels") or 0
    found = (way.channels or 0) + extra
    if options.channels not in (None, found):
        expected = f"expected {found}, as the ControlNet at {options.path!r} has, or null"
        raise ValueError(f"base.controlnet.channels: {expected}, got {options.channels}")
    return found


def _text(path: str, text: TextOptions | None, guidance: float) -> Conditioning:
    options = copy.copy(text) if text else TextOptions()
    options.guidance = guidance if options.guidance is None else options.guidance
    return text_of(path, options)


def _layout(kind: type[DenoiserLayout], reduce: str | None, reference: str | None = None) -> DenoiserLayout:
    given = {name: value for name, value in (("reduce", reduce), ("reference", reference)) if value is not None}
    reasons = {"reduce": "keeps all pixels of the mask", "reference": "is of no edit model"}
    for name, value in given.items():
        if name not in signature(kind).parameters:
            raise ValueError(f"base.{name}: expected null, as {kind.__name__} {reasons[name]}; got {value!r}")
    return kind(**given)
