"""Base models: one file for each, and how they are loaded, grown, adapted and called. See README.md beside this."""

from inpaint_module.base_models.base_model import BaseModel, EncoderOptions, ModelParts, VAEOptions, encoder_for
from inpaint_module.base_models.compile_and_shard import CompiledForward, blocks, shard
from inpaint_module.base_models.conditioning import Conditioning, NoConditioning, check_captions, drop_mask
from inpaint_module.base_models.controlnet import (
    CONDITION,
    Control,
    ControlNetCondition,
    ControlNetKind,
    ControlNetOptions,
    FrozenBase,
)
from inpaint_module.base_models.denoiser_call import (
    DenoiserCall,
    TiledCall,
    check_image_sizes,
    latent_multiple,
    tile_starts,
    tile_weight,
)
from inpaint_module.base_models.expand_input import check_input_channels, first_layer, grow_input_channels
from inpaint_module.base_models.families import FAMILIES, family_of, serving_pipeline
from inpaint_module.base_models.family import Family, TextOptions, Way
from inpaint_module.base_models.flux import (
    FluxCall,
    FluxControlNetLayout,
    FluxFillLayout,
    FluxInpaintControlNetLayout,
    FluxText,
    token_places,
)
from inpaint_module.base_models.layout import (
    Condition,
    DenoiserLayout,
    Layout,
    PackedPlainLayout,
    PlainLayout,
    ReferenceLayout,
    denoiser_layout,
    pack,
    unpack,
)
from inpaint_module.base_models.loading import DTYPES, load_denoiser, load_scheduler, load_text, new_model, text_of
from inpaint_module.base_models.lora import LoRA, add_lora, has_lora, lora_weights, remove_lora, trains_first_layer
from inpaint_module.base_models.quantize import dequantize, quantize, quantized_state
from inpaint_module.base_models.qwen_image import QwenImageControlNetLayout
from inpaint_module.base_models.stable_diffusion import (
    BrushNetLayout,
    FromFill,
    LatentDiffusionLayout,
    PixelCondition,
    PowerPaintLayout,
    SmoothFillLayout,
    StableDiffusionLayout,
    StableDiffusionText,
    WholeImageLayout,
)
from inpaint_module.base_models.stable_diffusion_3 import (
    StableDiffusion3Call,
    StableDiffusion3ControlNetLayout,
    StableDiffusion3Layout,
    StableDiffusion3PlainLayout,
    StableDiffusion3Text,
)
from inpaint_module.base_models.stable_diffusion_xl import StableDiffusionXLText
from inpaint_module.base_models.text import FrozenTextEncoder, TextConditioning
from inpaint_module.base_models.z_image import ZImageControlNetLayout

__all__ = [
    "CONDITION",
    "DTYPES",
    "FAMILIES",
    "BaseModel",
    "BrushNetLayout",
    "CompiledForward",
    "Condition",
    "Conditioning",
    "Control",
    "ControlNetCondition",
    "ControlNetKind",
    "ControlNetOptions",
    "DenoiserCall",
    "DenoiserLayout",
    "EncoderOptions",
    "Family",
    "FluxCall",
    "FluxControlNetLayout",
    "FluxFillLayout",
    "FluxInpaintControlNetLayout",
    "FluxText",
    "FromFill",
    "FrozenBase",
    "FrozenTextEncoder",
    "LatentDiffusionLayout",
    "Layout",
    "LoRA",
    "ModelParts",
    "NoConditioning",
    "PackedPlainLayout",
    "PixelCondition",
    "PlainLayout",
    "PowerPaintLayout",
    "QwenImageControlNetLayout",
    "ReferenceLayout",
    "SmoothFillLayout",
    "StableDiffusion3Call",
    "StableDiffusion3ControlNetLayout",
    "StableDiffusion3Layout",
    "StableDiffusion3PlainLayout",
    "StableDiffusion3Text",
    "StableDiffusionLayout",
    "StableDiffusionText",
    "StableDiffusionXLText",
    "TextConditioning",
    "TextOptions",
    "TiledCall",
    "VAEOptions",
    "Way",
    "WholeImageLayout",
    "ZImageControlNetLayout",
    "add_lora",
    "blocks",
    "check_captions",
    "check_image_sizes",
    "check_input_channels",
    "denoiser_layout",
    "dequantize",
    "drop_mask",
    "encoder_for",
    "family_of",
    "first_layer",
    "grow_input_channels",
    "has_lora",
    "latent_multiple",
    "load_denoiser",
    "load_scheduler",
    "load_text",
    "lora_weights",
    "new_model",
    "pack",
    "quantize",
    "quantized_state",
    "remove_lora",
    "serving_pipeline",
    "shard",
    "text_of",
    "tile_starts",
    "tile_weight",
    "token_places",
    "trains_first_layer",
    "unpack",
]
