"""Parts of a base model from a local folder or a hub name, by functions that a config can name."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import nn

from inpaint_module.base_models.conditioning import Conditioning
from inpaint_module.base_models.expand_input import grow_input_channels
from inpaint_module.base_models.families import family_of
from inpaint_module.base_models.family import TextOptions
from inpaint_module.base_models.lora import LoRA, add_lora, freeze_unread
from inpaint_module.base_models.quantize import quantize as put_into_bits
from inpaint_module.base_models.text import FrozenTextEncoder, TextConditioning, check_cacheable
from inpaint_module.base_models.text_cache import TextCache, describe
from inpaint_module.weights import config_model, loading_options, local_folder, runnable, weightless, without_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def new_model(class_name: str, config: dict[str, Any]) -> nn.Module:
    """A freshly initialised diffusers model, as `diffusers.<class_name>(**config)`.

    By class name and config, since the type hints of their constructors do not survive a YAML.

    Args:
        class_name: such as UNet2DModel, UNet2DConditionModel or AutoencoderKL.
        config: keyword arguments of its constructor.

    Raises:
        ValueError: diffusers has no such model class, or its constructor no such argument.
    """
    import diffusers

    model_class = getattr(diffusers, class_name, None)
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise ValueError(f"class_name must name a model class of diffusers, got {class_name!r}")
    try:
        with torch.device("meta") if weightless() else nullcontext():
            return model_class(**config)
    except TypeError as error:
        raise ValueError(f"diffusers.{class_name} does not take this config: {error}") from error


def load_denoiser(
    path: str,
    *,
    subfolder: str | None = None,
    in_channels: int | None = None,
    dtype: str = "float32",
    gradient_checkpointing: bool = False,
    channels_last: bool = False,
    lora: LoRA | None = None,
    quantize: str | None = None,
    model: Any = None,
) -> nn.Module:
    """A U-Net or transformer of diffusers, ready to train.

    Args:
        path: a pipeline's folder or hub name, a folder of the denoiser alone, or "embedded:inpainter" for the small one
            that ships with this package.
        subfolder: folder inside `path`; None for a pipeline's `unet` or `transformer`, whichever it has.
        in_channels: grow the first layer to this many, the new ones at zero: 9 for Stable Diffusion, 33 for SD3, 384
            for Flux. None keeps it; a model that has them already stays as it is.
        dtype: of the weights: float32 to train them all, bfloat16 to halve the memory of those that LoRA freezes. What
            the step computes in is the trainer's `precision`.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        channels_last: memory format of convolutions. Measure it: uncompiled, with group norms between them, it made a
            VAE 1.4 times slower on an H100. No use to a transformer.
        lora: train low-rank factors instead of the weights.
        quantize: nf4 or int8, by bitsandbytes, int8wo or float8wo: its frozen linear layers in 4 or 8 bits.
        model: its class; None for that of diffusers which its config names.

    Raises:
        ValueError: nothing there, an unknown dtype or kind, a first layer that cannot grow, or a LoRA that fits
            nothing.
    """
    from diffusers import AutoModel

    if dtype not in DTYPES:
        raise ValueError(f"denoiser dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    path = local_folder(path)
    if subfolder is None and (index := pipeline_index(path)):
        subfolder = "unet" if "unet" in index else "transformer"
    denoiser = _loaded(model or AutoModel, path, subfolder, "denoiser", torch_dtype=DTYPES[dtype], **_light())
    denoiser.train()
    if in_channels is not None:
        grow_input_channels(denoiser, in_channels)
    if quantize is not None:
        put_into_bits(denoiser, quantize)
    if lora is not None:
        add_lora(denoiser, lora)
    freeze_unread(denoiser)
    if not hasattr(denoiser, "gradient_checkpointing"):  # diffusers 0.42 forgets it in Z-Image's ControlNet
        denoiser.gradient_checkpointing = False
    if gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    if channels_last:
        denoiser.to(memory_format=torch.channels_last)
    return denoiser


def load_scheduler(
    path: str, *, subfolder: str | None = "scheduler", changes: dict[str, Any] | None = None
) -> SchedulerMixin:
    """The scheduler that a base model was trained with.

    Args:
        path: a pipeline's folder or hub name.
        subfolder: folder inside `path`.
        changes: entries of its config to replace, such as `{prediction_type: v_prediction}`.

    Raises:
        ValueError: nothing there, or a change of what its config does not have.
    """
    import diffusers

    # any scheduler class reads the config of all
    config = _loaded(diffusers.DDIMScheduler, path, subfolder, "scheduler", call="load_config")
    scheduler_class = getattr(diffusers, config["_class_name"])
    known = {**scheduler_class.from_config(config).config}
    if unknown := set(changes or ()) - set(known):
        raise ValueError(
            f"scheduler changes: {config['_class_name']} has no {', '.join(sorted(unknown))}; it has "
            f"{', '.join(name for name in known if not name.startswith('_'))}"
        )
    return scheduler_class.from_config(config, **(changes or {}))


def load_text(
    path: str,
    *,
    dtype: str = "float32",
    length: int | None = None,
    guidance: float = 30.0,
    t5: bool = True,
    clip_skip: int | None = None,
) -> Conditioning:
    """The text encoders of a pipeline, frozen, as its own class calls them.

    Args:
        path: a pipeline's folder or hub name: Stable Diffusion 1.x, 2.x, XL or 3, or Flux.
        dtype: of the weights.
        length: tokens of a T5; None for the pipeline's default, 256 for SD3 and 512 for Flux.
        guidance: the guidance of a guidance-distilled Flux; 30 is what `FluxFillPipeline` says.
        t5: False leaves out the T5 of SD3, which the base model was trained to bear.
        clip_skip: layers that the CLIPs of Stable Diffusion, XL and 3 leave out at the end, as the argument of their
            pipelines; serve with the same. None for the default of each. Flux has none.

    Raises:
        ValueError: no such pipeline there, an unknown dtype, a `clip_skip` that the base model has not, or transformers
            is not installed.
    """
    options = TextOptions(dtype=dtype, length=length, guidance=guidance, t5=t5, clip_skip=clip_skip)
    return text_of(path, options)


def text_of(path: str, options: TextOptions) -> TextConditioning:
    """As `load_text`, with the options of a `BaseModel`; with a cache the encoders have no weights."""
    if options.cache is not None:
        return _cached_text(path, options)
    if options.dtype not in DTYPES:
        raise ValueError(f"text dtype must be one of {', '.join(DTYPES)}; got {options.dtype!r}")
    index = pipeline_index(path)
    family = family_of(index, path)
    return family.read_text(FolderOfText(path, index or {}, DTYPES[options.dtype], options.quantize), options)


def _cached_text(path: str, options: TextOptions) -> TextConditioning:
    whole, light = copy.copy(options), copy.copy(options)
    whole.cache, light.cache, light.quantize = None, None, None
    found = TextCache(options.cache or "", describe(path, options))
    with without_weights():
        made = text_of(path, light)
    check_cacheable(made)
    made.cache, made.load = found, partial(text_of, path, whole)
    return made


class FolderOfText:
    """The text encoders of a pipeline's folder, counted from 1; a `TextFolder`."""

    index: Mapping[str, Any]

    def __init__(self, path: str, index: Mapping[str, Any], dtype: torch.dtype, quantize: str | None = None):
        self.path, self.index, self.dtype, self.quantize = path, index, dtype, quantize

    def has(self, number: int) -> bool:
        """If the pipeline has a text encoder of this number."""
        return bool(self.index.get(f"text_encoder_{number}", [None])[0])

    def encoder(self, number: int, length: int | None = None) -> FrozenTextEncoder:
        """The text encoder of this number, with its tokenizer cut at `length` tokens.

        Raises:
            ValueError: transformers is not installed, or the folder does not hold the encoder.
        """
        try:
            import transformers
        except ImportError as error:
            raise ValueError("text encoders need transformers: pip install 'inpaint-module[text]'") from error
        end = "" if number == 1 else f"_{number}"
        names = [f"tokenizer{end}", f"text_encoder{end}"]
        tokenizer, model = (getattr(transformers, self.index[name][1]) for name in names)
        made = _loaded(model, self.path, names[1], "text encoder", dtype=self.dtype)
        put_into_bits(made, self.quantize)
        made = runnable(made) if weightless() else made
        return FrozenTextEncoder(_loaded(tokenizer, self.path, names[0], "tokenizer"), made, length)

    def processor(self) -> Any:
        """The folder `processor`, of transformers.

        Raises:
            ValueError: it is not there, or torchvision or Pillow is not installed.
        """
        import transformers

        kind = getattr(transformers, self.index.get("processor", [None, "Qwen2VLProcessor"])[1])
        return _loaded(kind, self.path, "processor", "processor")

    def transformer(self) -> dict[str, Any]:
        """What the config of the pipeline's transformer says."""
        return model_config(self.path, "transformer")


def model_config(path: str, subfolder: str | None) -> dict[str, Any]:
    """The config of a model of diffusers.

    Raises:
        ValueError: nothing there.
    """
    from diffusers import UNet2DConditionModel

    # any model class reads the config of all
    return _loaded(UNet2DConditionModel, path, subfolder, "denoiser", call="load_config")


def pipeline_index(path: str) -> dict[str, Any] | None:
    """model_index.json, or None where there is none."""
    from diffusers import DiffusionPipeline

    if Path(path).is_dir() and not (Path(path) / DiffusionPipeline.config_name).is_file():
        return None
    options = loading_options(path, "base model")
    try:
        return dict(DiffusionPipeline.load_config(path, **options))
    except OSError:
        return None


def _loaded(
    source: Any, path: str, subfolder: str | None, what: str, call: str = "from_pretrained", **options: Any
) -> Any:
    from diffusers import AutoModel

    local = loading_options(path, what)
    try:
        if weightless() and (dtype := options.get("torch_dtype", options.get("dtype"))) is not None:
            own = None if source is AutoModel else source
            return config_model(path, subfolder, dtype, own, **local)
        options |= local
        return getattr(source, call)(path, subfolder=subfolder or "", **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"no {what} at {path!r}, subfolder {subfolder!r}: {error}") from error


def _light() -> dict[str, Any]:
    """Accelerate halves the memory that loading takes; without it diffusers would warn."""
    from importlib.util import find_spec

    return {"low_cpu_mem_usage": find_spec("accelerate") is not None}
