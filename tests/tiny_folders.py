"""Tiny random base models in the real folder format: every file that a pipeline of diffusers loads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import tiny_pipelines as tiny
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    ChromaInpaintPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinInpaintPipeline,
    FluxFillPipeline,
    QwenImageEditInpaintPipeline,
    QwenImageInpaintPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    ZImageInpaintPipeline,
)
from tiny_vaes import flux2, kl
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

CONFIGS = Path(__file__).parents[1] / "configs"
WIDTH = tiny.TEXT
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CLIP_WORDS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
T5_WORDS = ["<pad>", "</s>", "<unk>", "▁", *LETTERS, "▁the"]


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """Byte pairs of small letters, 77 tokens."""
    words = {word: number for number, word in enumerate(CLIP_WORDS)}
    merges = [("t", "h"), ("th", "e</w>")]
    return CLIPTokenizer(vocab=words, merges=merges, pad_token=pad, model_max_length=77)


def t5_tokenizer() -> T5TokenizerFast:
    """Small letters, 512 tokens."""
    return T5TokenizerFast(
        vocab=[(word, -float(n)) for n, word in enumerate(T5_WORDS)], extra_ids=0, model_max_length=512
    )


def clip(
    width: int = WIDTH, projected: bool = False, seed: int = 0, projection: int = WIDTH, **changes: object
) -> PreTrainedModel:
    """A CLIP text model, its hidden states `width` wide, the pooled text `projection`."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(CLIP_WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection,
        num_hidden_layers=3,
        num_attention_heads=2,
        bos_token_id=len(CLIP_WORDS) - 2,
        eos_token_id=len(CLIP_WORDS) - 1,
        pad_token_id=len(CLIP_WORDS) - 1,
        **changes,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5(width: int = WIDTH) -> T5EncoderModel:
    """A T5 encoder."""
    torch.manual_seed(9)
    sizes = {"d_model": width, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    return T5EncoderModel(T5Config(vocab_size=len(T5_WORDS), feed_forward_proj="gated-gelu", **sizes)).eval()


def autoencoder(channels: int, scaling_factor: float, shift_factor: float | None = None) -> AutoencoderKL:
    """AutoencoderKL of ratio 8."""
    torch.manual_seed(0)
    convolved = shift_factor is None
    options = {"use_quant_conv": convolved, "use_post_quant_conv": convolved}
    return kl(channels, scaling_factor=scaling_factor, shift_factor=shift_factor, **options).eval()


def stable_diffusion(in_channels: int = 4) -> StableDiffusionInpaintPipeline:
    """Stable Diffusion 1.5, of 4 channels or the 9 of its inpainting model."""
    return StableDiffusionInpaintPipeline(
        vae=autoencoder(4, 0.18215),
        unet=tiny.unet(in_channels, sample_size=64),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> StableDiffusionXLInpaintPipeline:
    """Stable Diffusion XL, 4 channels."""
    return StableDiffusionXLInpaintPipeline(
        vae=autoencoder(4, 0.13025),
        unet=tiny.unet_xl(),
        text_encoder=clip(WIDTH // 2),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(WIDTH // 2, projected=True, seed=1),
        tokenizer_2=clip_tokenizer("a"),
        scheduler=ddim(),
        add_watermarker=False,
    )


def stable_diffusion_3(num_layers: int = 1) -> StableDiffusion3InpaintPipeline:
    """Stable Diffusion 3, 16 channels."""
    return StableDiffusion3InpaintPipeline(
        vae=autoencoder(16, 1.5305, 0.0609),
        transformer=tiny.sd3_transformer(pooled_projection_dim=2 * WIDTH, num_layers=num_layers),
        text_encoder=clip(WIDTH // 4, projected=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(WIDTH // 4, projected=True, seed=1),
        tokenizer_2=clip_tokenizer("a"),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(in_channels: int = 64, guidance_embeds: bool = True) -> FluxFillPipeline:
    """Flux.1, of 64 channels or the 384 of its fill model."""
    return FluxFillPipeline(
        vae=autoencoder(16, 0.3611, 0.1159),
        transformer=tiny.flux_transformer(in_channels, 64, guidance_embeds=guidance_embeds),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A token a byte."""
    words = [*bytes_to_unicode().values(), "<|endoftext|>"]
    tokenizer = Qwen2Tokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    turn = "{% for each in messages %}<|im_start|>{{ each.role }}\n{{ each.content }}<|im_end|>\n{% endfor %}"
    tokenizer.chat_template = turn + "<|im_start|>assistant\n"
    return tokenizer


_QWEN = {
    "vocab_size": 257,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 256,
}


SEEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL."""
    torch.manual_seed(9)
    text = {**_QWEN, "vocab_size": 257 + len(SEEN), "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}
    sizes = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH}
    vision = {**sizes, "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [0]}
    tokens = {"vision_start_token_id": 257, "vision_end_token_id": 258, "image_token_id": 259, "video_token_id": 260}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, bos_token_id=None, eos_token_id=256, **tokens)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen_image() -> QwenImageInpaintPipeline:
    """Qwen-Image."""
    torch.manual_seed(0)
    shifts = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}
    return QwenImageInpaintPipeline(
        vae=AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        transformer=tiny.qwen_image_transformer(),
        text_encoder=qwen_vl(),
        tokenizer=qwen_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(**shifts, shift_terminal=0.02),
    )


def qwen_image_edit() -> QwenImageEditInpaintPipeline:
    """Qwen-Image-Edit, whose text encoder sees."""
    parts, tokenizer = qwen_image().components, qwen_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SEEN})
    sees = Qwen2VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())
    return QwenImageEditInpaintPipeline(**parts | {"tokenizer": tokenizer, "processor": sees})


def flux_2() -> Flux2KleinInpaintPipeline:
    """Flux.2 Klein, whose text encoder has layers 9, 18 and 27."""
    torch.manual_seed(9)
    return Flux2KleinInpaintPipeline(
        vae=flux2().eval(),
        transformer=tiny.flux_2_transformer(),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**_QWEN | {"num_hidden_layers": 27}, head_dim=8)).eval(),
        tokenizer=qwen_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        is_distilled=True,
    )


def z_image() -> ZImageInpaintPipeline:
    """Z-Image."""
    torch.manual_seed(9)
    return ZImageInpaintPipeline(
        vae=autoencoder(16, 0.3611, 0.1159),
        transformer=tiny.z_image_transformer(),
        text_encoder=Qwen3Model(Qwen3Config(**_QWEN, head_dim=8)).eval(),
        tokenizer=qwen_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def chroma() -> ChromaInpaintPipeline:
    """Chroma."""
    return ChromaInpaintPipeline(
        vae=autoencoder(16, 0.3611, 0.1159),
        transformer=tiny.chroma_transformer(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def ddim(**changes: object) -> DDIMScheduler:
    """With the betas of Stable Diffusion."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return DDIMScheduler(**betas, steps_offset=1, clip_sample=False, set_alpha_to_one=False, **changes)


def saved(pipeline: DiffusionPipeline, folder: Path) -> str:
    """The pipeline's folder, as `save_pretrained` writes it."""
    pipeline.save_pretrained(folder)
    return str(folder)


BASES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd15": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux_fill": flux,
}
PLAIN_BASES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd15_plain": stable_diffusion,
    "sdxl_plain": stable_diffusion_xl,
    "sd3_plain": stable_diffusion_3,
    "flux_plain": flux,
    "qwen_image_plain": qwen_image,
    "z_image_plain": z_image,
    "chroma_plain": chroma,
    "flux_kontext_edit": flux,
    "flux2_klein_edit": flux_2,
    "qwen_image_edit": qwen_image_edit,
}
CONTROLNET_BASES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd15_controlnet": stable_diffusion,
    "sdxl_controlnet": stable_diffusion_xl,
    "sd3_controlnet": lambda: stable_diffusion_3(num_layers=2),
    "flux_controlnet": flux,
    "flux_controlnet_68": flux,
    "qwen_image_controlnet": qwen_image,
    "z_image_controlnet": z_image,
}


def config_over(name: str, folder: Path) -> Path:
    """A copy of configs/<name>.yaml in `folder`, its base model a tiny one, which is written beside it."""
    base = saved((BASES | PLAIN_BASES | CONTROLNET_BASES)[name](), folder / f"{name}_base")
    text, count = re.subn(r"(?<=base: \{path: )[^,]+", base, (CONFIGS / f"{name}.yaml").read_text())
    assert count == 1
    config = folder / f"{name}.yaml"
    config.write_text(text)
    return config
