"""What each text conditioning tells a denoiser, against the pipeline's own `encode_prompt`, tensor for tensor."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_folders as tiny
import torch
from diffusers import DiffusionPipeline
from on_gpu import never_waiting, on_gpu
from torch import Tensor, nn

from inpaint_module.base_models import (
    FluxText,
    FrozenTextEncoder,
    StableDiffusion3Text,
    StableDiffusionText,
    StableDiffusionXLText,
    TextConditioning,
)

CAPTIONS = ["the cat", "", "a dog in the rain"]
DROPPED = torch.tensor([False, True, True])


def encoder(pipeline: DiffusionPipeline, number: int, length: int | None = None) -> FrozenTextEncoder:
    end = "" if number == 1 else f"_{number}"
    return FrozenTextEncoder(getattr(pipeline, f"tokenizer{end}"), getattr(pipeline, f"text_encoder{end}"), length)


def batch(captions: list[str] = CAPTIONS, **more: Tensor) -> dict[str, Any]:
    return {"image": torch.zeros(len(captions), 3, 32, 53, dtype=torch.uint8), "caption": captions, **more}


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # one empty caption, or a batch of them, sums otherwise


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    """As in a pipeline's call: with gradients attention is computed otherwise, to another last bit."""
    with torch.no_grad():
        yield


def rows(positive: Tensor, negative: Tensor) -> Tensor:
    """What a batch of which `DROPPED` is dropped should be told."""
    return torch.where(DROPPED.view(-1, *[1] * (positive.ndim - 1)), negative, positive)


def test_stable_diffusion() -> None:
    pipeline = tiny.stable_diffusion()
    positive, negative = pipeline.encode_prompt(CAPTIONS, "cpu", 1, True)
    told = StableDiffusionText(encoder(pipeline, 1))
    assert_equal(told(batch())["encoder_hidden_states"], positive)
    assert_equal(told(batch(), DROPPED)["encoder_hidden_states"], rows(positive, negative))


def test_stable_diffusion_2_heeds_its_attention_mask() -> None:
    pipeline = tiny.stable_diffusion()
    pipeline.text_encoder.config.use_attention_mask = True
    told = StableDiffusionText(encoder(pipeline, 1))(batch())["encoder_hidden_states"]
    assert_equal(told, pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)[0])
    pipeline.text_encoder.config.use_attention_mask = False
    assert not torch.allclose(told, pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)[0])


@pytest.mark.parametrize("skip", [0, 1, 3])
def test_clip_skip_of_stable_diffusion(skip: int) -> None:
    pipeline = tiny.stable_diffusion()
    # diffusers 0.42 asks for text_model, which the CLIP of transformers 5 no longer has
    vars(pipeline.text_encoder).setdefault("text_model", pipeline.text_encoder)
    positive, negative = pipeline.encode_prompt(CAPTIONS, "cpu", 1, True, clip_skip=skip)
    conditioning = StableDiffusionText(encoder(pipeline, 1), clip_skip=skip)
    assert_equal(conditioning(batch())["encoder_hidden_states"], positive)
    assert_equal(conditioning(batch(), DROPPED)["encoder_hidden_states"], rows(positive, negative))
    plain = StableDiffusionText(encoder(pipeline, 1))(batch())["encoder_hidden_states"]
    assert torch.allclose(positive, plain, atol=1e-6) == (skip == 0)


@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("force_zeros", [True, False])
def test_clip_skip_of_stable_diffusion_xl(skip: int, force_zeros: bool) -> None:
    pipeline = tiny.stable_diffusion_xl()
    pipeline.register_to_config(force_zeros_for_empty_prompt=force_zeros)
    positive, negative, pooled, _ = pipeline.encode_prompt(CAPTIONS, clip_skip=skip)
    options: dict[str, Any] = {"force_zeros": force_zeros, "clip_skip": skip}
    conditioning = StableDiffusionXLText(encoder(pipeline, 1), encoder(pipeline, 2), **options)
    told, mixed = conditioning(batch()), conditioning(batch(), DROPPED)
    assert torch.equal(told["encoder_hidden_states"], positive)
    assert torch.equal(told["added_cond_kwargs"]["text_embeds"], pooled)
    assert_equal(mixed["encoder_hidden_states"], rows(positive, negative))


@pytest.mark.parametrize("skip", [0, 1])
def test_clip_skip_of_stable_diffusion_3(skip: int) -> None:
    pipeline = tiny.stable_diffusion_3()
    told = pipeline.encode_prompt(CAPTIONS, None, None, max_sequence_length=40, clip_skip=skip)
    encoders = encoder(pipeline, 1), encoder(pipeline, 2), encoder(pipeline, 3, 40)
    conditioning = StableDiffusion3Text(*encoders, width=tiny.WIDTH, length=40, clip_skip=skip)
    assert torch.equal(conditioning(batch())["encoder_hidden_states"], told[0])
    assert torch.equal(conditioning(batch())["pooled_projections"], told[2])
    assert_equal(conditioning(batch(), DROPPED)["encoder_hidden_states"], rows(told[0], told[1]))


@pytest.mark.parametrize("skip", [-1, 4])
def test_layers_that_are_not_there_are_refused(skip: int) -> None:
    pipeline = tiny.stable_diffusion()
    with pytest.raises(ValueError, match=rf"clip_skip must be in 0\.\.3 for these text encoders, or null; got {skip}"):
        StableDiffusionText(encoder(pipeline, 1), clip_skip=skip)
    pipeline = tiny.stable_diffusion_xl()
    with pytest.raises(ValueError, match=rf"clip_skip must be in 0\.\.2 .* got {skip}"):
        StableDiffusionXLText(encoder(pipeline, 1), encoder(pipeline, 2), clip_skip=skip)


@pytest.mark.parametrize("force_zeros", [True, False])
def test_stable_diffusion_xl(force_zeros: bool) -> None:
    pipeline = tiny.stable_diffusion_xl()
    pipeline.register_to_config(force_zeros_for_empty_prompt=force_zeros)
    positive, negative, pooled, negative_pooled = pipeline.encode_prompt(CAPTIONS)
    conditioning = StableDiffusionXLText(encoder(pipeline, 1), encoder(pipeline, 2), force_zeros=force_zeros)
    told, mixed = conditioning(batch()), conditioning(batch(), DROPPED)
    assert torch.equal(told["encoder_hidden_states"], positive)
    assert torch.equal(told["added_cond_kwargs"]["text_embeds"], pooled)
    assert_equal(mixed["encoder_hidden_states"], rows(positive, negative))
    assert_equal(mixed["added_cond_kwargs"]["text_embeds"], rows(pooled, negative_pooled))


def test_stable_diffusion_xl_time_ids() -> None:
    pipeline = tiny.stable_diffusion_xl()
    conditioning = StableDiffusionXLText(encoder(pipeline, 1), encoder(pipeline, 2))

    def theirs(original: tuple[int, int], crop: tuple[int, int]) -> Tensor:
        sizes = original, crop, (32, 48), 6.0, 2.5, original, crop, (32, 48)
        return pipeline._get_add_time_ids(*sizes, torch.float32, text_encoder_projection_dim=tiny.WIDTH)[0]

    told = conditioning(batch())["added_cond_kwargs"]["time_ids"]
    assert torch.equal(told, theirs((32, 48), (0, 0)).expand(3, 6))
    sizes = {"original_size": torch.tensor([[600, 800]] * 3), "crop": torch.tensor([[5, 7]] * 3)}
    told = conditioning(batch(**sizes))["added_cond_kwargs"]["time_ids"]
    assert torch.equal(told, theirs((600, 800), (5, 7)).expand(3, 6))


def test_sizes_of_another_shape_are_refused() -> None:
    pipeline = tiny.stable_diffusion_xl()
    conditioning = StableDiffusionXLText(encoder(pipeline, 1), encoder(pipeline, 2))
    with pytest.raises(ValueError, match=r"batch\['crop'\] must be \(3, 2\), got \(3,\)"):
        conditioning(batch(crop=torch.zeros(3)))


@pytest.mark.parametrize("t5", [True, False])
def test_stable_diffusion_3(t5: bool) -> None:
    pipeline = tiny.stable_diffusion_3()
    if not t5:
        pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    positive, negative, pooled, negative_pooled = pipeline.encode_prompt(CAPTIONS, None, None, max_sequence_length=40)
    third = encoder(pipeline, 3, 40) if t5 else None
    conditioning = StableDiffusion3Text(encoder(pipeline, 1), encoder(pipeline, 2), third, width=tiny.WIDTH, length=40)
    told, mixed = conditioning(batch()), conditioning(batch(), DROPPED)
    assert torch.equal(told["encoder_hidden_states"], positive)
    assert torch.equal(told["pooled_projections"], pooled)
    assert_equal(mixed["encoder_hidden_states"], rows(positive, negative))
    assert_equal(mixed["pooled_projections"], rows(pooled, negative_pooled))


def test_flux() -> None:
    pipeline = tiny.flux()
    positive, pooled, text_ids = pipeline.encode_prompt(CAPTIONS, max_sequence_length=40)
    negative, negative_pooled, _ = pipeline.encode_prompt("", max_sequence_length=40)
    conditioning = FluxText(encoder(pipeline, 1), encoder(pipeline, 2, 40), guidance=3.5)
    told, mixed = conditioning(batch()), conditioning(batch(), DROPPED)
    assert torch.equal(told["encoder_hidden_states"], positive)
    assert torch.equal(told["pooled_projections"], pooled)
    assert torch.equal(told["txt_ids"], text_ids)
    assert torch.equal(told["guidance"], torch.full((3,), 3.5))
    assert_equal(mixed["encoder_hidden_states"], rows(positive, negative))
    assert_equal(mixed["pooled_projections"], rows(pooled, negative_pooled))
    assert "guidance" not in FluxText(encoder(pipeline, 1), encoder(pipeline, 2, 40), guidance=None)(batch())


def small() -> StableDiffusionText:
    return StableDiffusionText(FrozenTextEncoder(tiny.clip_tokenizer(), tiny.clip()))


def test_frozen_and_outside_of_the_module_tree() -> None:
    conditioning = small()
    module = nn.Module()
    module.conditioning = conditioning
    module.train().to(torch.bfloat16)
    assert not list(module.parameters())
    assert not module.state_dict()
    assert copy.deepcopy(module).conditioning is conditioning
    assert conditioning.encoder.dtype == torch.float32
    assert not any(weight.requires_grad for weight in conditioning.encoder.model.parameters())


def test_dropout_of_a_text_encoder_stays_off() -> None:
    conditioning = small()
    conditioning.encoder.model.train()
    first, second = (conditioning(batch())["encoder_hidden_states"] for _ in range(2))
    assert torch.equal(first, second)
    assert not conditioning.encoder.model.training


def test_its_own_dtype_under_autocast() -> None:
    conditioning = small()
    expected = conditioning(batch())["encoder_hidden_states"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conditioning(batch())["encoder_hidden_states"], expected)
    half = StableDiffusionText(FrozenTextEncoder(tiny.clip_tokenizer(), tiny.clip().to(torch.bfloat16)))
    assert half(batch(), DROPPED)["encoder_hidden_states"].dtype == torch.bfloat16


def test_the_fingerprint_tells_weights_apart() -> None:
    other: TextConditioning = StableDiffusionText(FrozenTextEncoder(tiny.clip_tokenizer(), tiny.clip(seed=1)))
    assert small().fingerprint() == small().fingerprint() != other.fingerprint()
    assert len(other.fingerprint()) == 32


def test_moves_with_to() -> None:
    conditioning = small()
    conditioning.to(torch.device("meta"))
    assert conditioning.encoder.device.type == "meta"


def test_captions_that_are_cut_are_said() -> None:
    with pytest.warns(
        UserWarning, match="fills all 77 tokens of CLIPTextModel, and what goes beyond is not read: 'xxx"
    ):
        small()(batch(["x" * 99, "y"]))


@pytest.mark.parametrize("captions", [None, ["one"]])
def test_a_caption_for_each_image(captions: list[str] | None) -> None:
    with pytest.raises(ValueError, match=r"expects batch\['caption'\], a list of 3 strings, got (None|1 in a list)"):
        small()({**batch(), "caption": captions})


@pytest.mark.cuda
def test_a_gpu_is_not_waited_for() -> None:
    pipeline = tiny.stable_diffusion_xl()
    conditioning = StableDiffusionXLText(encoder(pipeline, 1), encoder(pipeline, 2))
    conditioning.to(torch.device("cuda"))
    given = on_gpu(batch())
    dropped = torch.zeros(len(given["image"]), dtype=torch.bool, device="cuda")
    conditioning(given, dropped)  # the embedding of no caption is made once
    with never_waiting():
        conditioning(given, dropped)
