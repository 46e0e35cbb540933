"""`train: plain` and `edit`: the loss of diffusers' example scripts, and the pipelines that blend, step by step."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from quiet_trainer import QUIET
from test_base_models import CAPTIONS, assert_same_call, caught, in_the_order_of_training
from tiny_folders import PLAIN_BASES, saved
from tiny_models import tiny_batch
from torch import Tensor

from inpaint_module.base_models import BaseModel, LoRA, PlainLayout, family_of, unpack
from inpaint_module.base_models.families import config_difference, reference_call
from inpaint_module.base_models.family import TextOptions
from inpaint_module.export import export
from inpaint_module.randomness import Stream, key, normal
from inpaint_module.sampling import inpaint_latents
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .*not empty"),
    pytest.mark.filterwarnings("ignore:a caption fills all 77 tokens"),
    pytest.mark.filterwarnings("ignore:ChromaInpaintPipeline of the installed diffusers stops"),
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),  # Chroma's transformer uses it
    pytest.mark.filterwarnings("ignore:StableDiffusion3InpaintPipeline of the installed diffusers decodes without"),
]
SERVED = {
    "sd15_plain": "StableDiffusionInpaintPipeline",
    "sdxl_plain": "StableDiffusionXLInpaintPipeline",
    "sd3_plain": "StableDiffusion3InpaintPipeline",
    "flux_plain": "FluxInpaintPipeline",
    "qwen_image_plain": "QwenImageInpaintPipeline",
    "z_image_plain": "ZImageInpaintPipeline",
    "chroma_plain": "ChromaInpaintPipeline",
    "flux_kontext_edit": "FluxKontextInpaintPipeline",
    "flux2_klein_edit": "Flux2KleinInpaintPipeline",
    "qwen_image_edit": "QwenImageEditInpaintPipeline",
}
UNGUIDED = {  # and what Flux is told in training
    "flux_kontext_edit": {"guidance_scale": 3.5, "_auto_resize": False},
    "flux_plain": {"guidance_scale": 3.5},
    "qwen_image_edit": {"true_cfg_scale": 1.0},
    "qwen_image_plain": {"true_cfg_scale": 1.0},
    "z_image_plain": {"guidance_scale": 0.0},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: saved(PLAIN_BASES[name](), tmp_path_factory.mktemp("plain") / name) for name in SERVED}


def module_of(path: str, **options: Any) -> InpaintDiffusion:
    return InpaintDiffusion(BaseModel(path, train=options.pop("train", "plain"), **options), sampling_steps=3)


def of(name: str, folders: dict[str, str], **options: Any) -> InpaintDiffusion:
    return module_of(folders[name], train=name.rpartition("_")[2], **options)


def sample() -> dict[str, Any]:
    return tiny_batch(2, 32, 48) | {"caption": CAPTIONS}


def holed(batch: dict[str, Any]) -> list[Image.Image]:
    """Pictures of 8 bits whose hole is grey."""
    filled = torch.where(batch["mask"], 128, batch["image"]).movedim(1, -1)
    return [Image.fromarray(each.numpy()) for each in filled]


def told_beside_pictures(module: InpaintDiffusion, batch: dict[str, Any]) -> dict[str, Any]:
    """What the pipeline itself makes of captions and pictures."""
    pipeline = diffusers.QwenImageEditInpaintPipeline.from_pretrained(module.base.path)
    hidden, mask = pipeline.encode_prompt(batch["caption"], image=holed(batch))
    return {"encoder_hidden_states": hidden, "encoder_hidden_states_mask": mask}


def pipeline_ids(shown: Tensor | None) -> Tensor:
    """The places of a picture's tokens beside noisy ones, of a batch of two."""
    return diffusers.Flux2KleinInpaintPipeline._prepare_image_ids([shown], 2)


def loss_by_hand(name: str, module: InpaintDiffusion, batch: dict[str, Any]) -> Tensor:
    """As train_text_to_image.py and its _sdxl, and train_dreambooth's _sd3, _flux, _lora_qwen_image, _lora_z_image;
    Chroma's as Flux's, told what its pipeline tells.
    """
    vae, image = module.encoder.vae, batch["image"].float() / 255
    model_input, shown = vae.normalize(vae.posterior(image).mean), None
    if name.endswith("_edit"):
        grey = 128 / 255 if name == "qwen_image_edit" else 0.5
        shown = vae.normalize(vae.posterior(torch.where(batch["mask"], grey, image)).mean)
    noise = normal(key(module.seed, batch["position"], Stream.NOISE), model_input.shape[1:])
    drawn = key(module.seed, batch["position"], Stream.TIMESTEP)
    timesteps = module.objective(model_input, noise, drawn).timesteps
    unet = module.denoiser
    told = told_beside_pictures(module, batch) if name == "qwen_image_edit" else module.conditioning(batch)
    if name in ("sd15_plain", "sdxl_plain"):
        noisy = module.scheduler.add_noise(model_input, noise, timesteps)
        return F.mse_loss(unet(noisy, timesteps, **told).sample.float(), noise.float(), reduction="mean")
    sigmas = (timesteps / 1000).reshape(-1, 1, 1, 1)
    noisy, target = (1.0 - sigmas) * model_input + sigmas * noise, noise - model_input
    if name == "sd3_plain":
        prediction = unet(hidden_states=noisy, timestep=timesteps, **told, return_dict=False)[0]
    elif name == "z_image_plain":
        said = unet(list(noisy.unsqueeze(2).unbind(dim=0)), (1000 - timesteps) / 1000, **told, return_dict=False)[0]
        prediction = -torch.stack(said, dim=0).squeeze(2)
    elif name == "flux2_klein_edit":
        pipeline, shown_at = diffusers.Flux2KleinInpaintPipeline, pipeline_ids(shown)
        ids = torch.cat([diffusers.Flux2KleinInpaintPipeline._prepare_latent_ids(noisy), shown_at], dim=1)
        packed = torch.cat([pipeline._pack_latents(noisy), pipeline._pack_latents(shown)], dim=1)
        tokens = unet(packed, timestep=timesteps / 1000, img_ids=ids, **told, return_dict=False)[0][:, :6]
        prediction = pipeline._unpack_latents_with_ids(tokens, ids[:, :6])
        prediction = prediction.to(memory_format=torch.channels_last)  # the order in which ours is summed
    elif name == "chroma_plain":
        pipeline, (height, width) = diffusers.ChromaPipeline, noisy.shape[-2:]
        packed = pipeline._pack_latents(noisy, 2, 16, height, width)
        ids = pipeline._prepare_latent_image_ids(2, height // 2, width // 2, noisy.device, noisy.dtype)
        known = torch.cat([told.pop("attention_mask"), torch.ones(2, packed.shape[1])], dim=1)
        named = {"timestep": timesteps / 1000, "img_ids": ids, "attention_mask": known, "return_dict": False}
        tokens = unet(packed, **named, **told)[0]
        prediction = pipeline._unpack_latents(tokens, 8 * height, 8 * width, 8)
        prediction = prediction.to(memory_format=torch.channels_last)  # the order in which ours is summed
    elif name.startswith("qwen_image"):
        pipeline, (height, width) = diffusers.QwenImagePipeline, noisy.shape[-2:]
        packed = pipeline._pack_latents(noisy, 2, 16, height, width)
        shapes, count = [[(1, height // 2, width // 2)]] * 2, packed.shape[1]
        if shown is not None:
            packed = torch.cat([packed, pipeline._pack_latents(shown, 2, 16, height, width)], dim=1)
            shapes = [shapes[0] * 2] * 2
        tokens = unet(packed, timestep=timesteps / 1000, img_shapes=shapes, **told, return_dict=False)[0][:, :count]
        prediction = pipeline._unpack_latents(tokens, 8 * height, 8 * width, 8).squeeze(2)
        prediction = prediction.to(memory_format=torch.channels_last)  # the order in which ours is summed
    else:
        pipeline = diffusers.FluxPipeline
        height, width = noisy.shape[-2:]
        assert told.pop("guidance").tolist() == [3.5, 3.5]
        packed = pipeline._pack_latents(noisy, 2, 16, height, width)
        ids = pipeline._prepare_latent_image_ids(2, height // 2, width // 2, noisy.device, noisy.dtype)
        guidance = torch.tensor([3.5]).expand(2)
        tokens_of_noisy = packed.shape[1]
        if shown is not None:
            packed = torch.cat([packed, pipeline._pack_latents(shown, 2, 16, height, width)], dim=1)
            ids = torch.cat([ids, torch.cat([torch.ones_like(ids[:, :1]), ids[:, 1:]], dim=1)])
        tokens = unet(
            hidden_states=packed, timestep=timesteps / 1000, guidance=guidance, img_ids=ids, **told, return_dict=False
        )[0][:, :tokens_of_noisy]
        prediction = pipeline._unpack_latents(tokens, 8 * height, 8 * width, 8)
        prediction = prediction.to(memory_format=torch.channels_last)  # the order in which ours is summed
    # the scripts take the mean of each sample and then that of all: the same number, summed in another order
    return F.mse_loss(prediction.float(), target.float())


@pytest.mark.parametrize("name", SERVED)
def test_the_loss_is_that_of_the_example_scripts(name: str, folders: dict[str, str]) -> None:
    module = of(name, folders)
    assert torch.equal(module.loss(sample()), loss_by_hand(name, module, sample()))  # type: ignore[arg-type]


def answer(pipeline: Any, name: str, batch: dict[str, Any], noise: Tensor, **guidance: Any) -> Tensor:
    """The pipeline's latents, from this noise."""
    pipeline.set_progress_bar_config(disable=True)
    if name == "chroma_plain":  # its pipeline in diffusers 0.42 looks for this, and `export` says so
        pipeline.transformer.register_to_config(guidance_embeds=False)
    drawn = f"{type(pipeline).__module__}.randn_tensor"
    image, mask = batch["image"].float() / 255, batch["mask"].float()
    options = guidance or UNGUIDED.get(name, {"guidance_scale": 1.0})
    if name == "flux_kontext_edit":
        options = {"image_reference": torch.where(mask > 0.5, 0.5, image), **options}
    own_size: AbstractContextManager[Any] = nullcontext()
    if name == "flux2_klein_edit":
        image = torch.where(mask > 0.5, 0.5, image)
    if name == "qwen_image_edit":  # which takes 8 bits alone, and brings all pictures to a million pixels
        image = holed(batch)
        sized = f"{type(pipeline).__module__}.calculate_dimensions"
        own_size = mock.patch(sized, return_value=(48, 32, None))
    with mock.patch(drawn, lambda shape, **_: noise.reshape(shape)), own_size:
        return pipeline(
            prompt=batch["caption"],
            image=image,
            mask_image=mask,
            height=32,
            width=48,
            strength=1.0,
            num_inference_steps=3,
            output_type="latent",
            **options,
        ).images


@pytest.mark.parametrize("name", SERVED)
def test_validation_blends_as_the_pipeline(
    name: str, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, batch = of(name, folders), sample()
    filled: list[Any] = []
    ours = caught(module.denoiser, lambda: filled.append(module.inpaint(batch)))  # type: ignore[arg-type]
    export(module, tmp_path / "out")
    pipeline = getattr(diffusers, SERVED[name]).from_pretrained(tmp_path / "out")
    in_the_order_of_training(pipeline.vae)
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    cells = (2, 3) if name == "flux2_klein_edit" else (4, 6)
    noise = normal(key(module.seed, batch["position"], Stream.SAMPLER), (module.encoder.vae.channels, *cells))
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    images: list[Tensor] = []
    theirs = caught(denoiser, lambda: images.append(answer(pipeline, name, batch, noise)))
    assert len(ours) == len(theirs) == 3
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert_same_call(mine, other, atol=1e-6 if number == 0 else 1e-5)
    latents = images[0]
    if name == "flux2_klein_edit":  # as its VAE has them
        latents = module.encoder.vae.normalize(F.pixel_unshuffle(latents, 2))
    if latents.ndim == 3:
        latents = pipeline._unpack_latents(latents, 32, 48, 8).reshape(noise.shape)
    decoded = module.encoder.decode(latents)
    torch.testing.assert_close(filled[0].inpainted, decoded, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "guidance"),
    [
        ("qwen_image_plain", {"true_cfg_scale": 4.0, "negative_prompt": ["", ""]}),
        ("qwen_image_edit", {"true_cfg_scale": 4.0, "negative_prompt": ["", ""]}),
        ("z_image_plain", {"guidance_scale": 3.0}),
        ("sd15_plain", {"guidance_scale": 4.0}),
        ("chroma_plain", {"guidance_scale": 4.0}),
    ],
)
def test_guidance_is_the_pipelines(name: str, guidance: dict[str, Any], folders: dict[str, str]) -> None:
    module, batch = of(name, folders), sample()
    module.guidance_scale = 4.0
    ours = module.inpaint(batch).inpainted  # type: ignore[arg-type]
    pipeline: Any = getattr(diffusers, SERVED[name]).from_pretrained(folders[name])
    in_the_order_of_training(pipeline.vae)
    noise = normal(key(module.seed, batch["position"], Stream.SAMPLER), (module.encoder.vae.channels, 4, 6))
    with mock.patch.object(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()):
        latents = answer(pipeline, name, batch, noise, **guidance)
    if latents.ndim == 3:
        latents = pipeline._unpack_latents(latents, 32, 48, 8).reshape(noise.shape)
    torch.testing.assert_close(ours, module.encoder.decode(latents), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_flux_2_is_guided_unless_it_is_distilled_which_export_keeps(folders: dict[str, str], tmp_path: Path) -> None:
    name, batch = "flux2_klein_edit", sample()
    module = of(name, folders)
    export(module, tmp_path / "out")
    pipeline: Any = diffusers.Flux2KleinInpaintPipeline.from_pretrained(tmp_path / "out")
    assert pipeline.config.is_distilled
    said = json.loads((tmp_path / "out" / "export.json").read_text())["differences"]
    assert any("call it with image=torch.where(mask > 0.5, 0.5, image), a tensor" in each for each in said)
    assert not any("nearest" in each or "samples it" in each for each in said)
    pipeline.register_to_config(is_distilled=False)
    in_the_order_of_training(pipeline.vae)
    module.guidance_scale = 4.0
    noise = normal(key(module.seed, batch["position"], Stream.SAMPLER), (16, 2, 3))
    latents = F.pixel_unshuffle(answer(pipeline, name, batch, noise, guidance_scale=4.0), 2)
    ours = module.inpaint(batch).inpainted  # type: ignore[arg-type]
    theirs = module.encoder.decode(module.encoder.vae.normalize(latents))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_lora_of_flux_2_has_factors_in_both_kinds_of_blocks(folders: dict[str, str]) -> None:
    names = [name for name, _ in of("flux2_klein_edit", folders, lora=LoRA(2)).denoiser.named_parameters()]
    assert any("single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A" in name for name in names)
    assert any(name.startswith("transformer_blocks.0.attn.add_q_proj.lora_A") for name in names)


def test_what_flux_2_refuses(folders: dict[str, str]) -> None:
    name, odd = "flux2_klein_edit", tiny_batch(2, 40, 48) | {"caption": CAPTIONS}
    module = of(name, folders)
    assert module.encode(odd).samples.shape == (2, 16, 2, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"base.reference: expected one of masked, image for Flux2EditLayout"):
        of(name, folders, reference="picture")
    with pytest.raises(ValueError, match=r"base.train: Flux.2 Klein is trained by edit \(.*\); got 'plain'"):
        module_of(folders[name], train="plain")
    with pytest.raises(ValueError, match=r"clip_skip: expected null for Flux.2"):
        of(name, folders, text=TextOptions(clip_skip=1))


@pytest.mark.parametrize("name", ["flux_kontext_edit", "qwen_image_edit"])
def test_an_edit_model_may_be_shown_the_whole_image(name: str, folders: dict[str, str]) -> None:
    module, batch = of(name, folders, reference="image"), sample()
    with pytest.raises(ValueError, match=r"base.reference: expected samples that all have a target .* 'photo0'"):
        module.loss(batch)  # type: ignore[arg-type]
    batch["target"] = batch["image"].flip(-1)
    fed = caught(module.denoiser, lambda: module.loss(batch))[0]["hidden_states"]  # type: ignore[arg-type]
    vae = module.encoder.vae
    whole, target = (vae.normalize(vae.posterior(batch[name].float() / 255).mean) for name in ("image", "target"))
    torch.testing.assert_close(unpack(fed[:, 6:], 4, 6), whole, rtol=0, atol=1e-5)
    latents = module.encode(batch)  # type: ignore[arg-type]
    torch.testing.assert_close(latents.target, target, rtol=0, atol=1e-5)
    assert torch.equal(latents.noise_mask, batch["mask"].float())
    assert module.inpaint(sample()).inpainted.shape == (2, 3, 32, 48)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"base.reference: expected one of masked, image.* got 'hole'"):
        of(name, folders, reference="hole")
    with pytest.raises(ValueError, match=r"base.reference: expected null, as PackedPlainLayout is of no edit model"):
        of("flux_plain", folders, reference="masked")


@pytest.mark.parametrize("name", ["qwen_image_plain", "qwen_image_edit", "z_image_plain", "chroma_plain"])
def test_a_dropped_caption_is_an_empty_one(name: str, folders: dict[str, str]) -> None:
    module, batch = of(name, folders), sample()
    empty = module.loss(batch | {"caption": ["", CAPTIONS[1]]})  # type: ignore[arg-type]
    embed = module.conditioning.embed
    with mock.patch.object(module.conditioning, "embed", lambda given, _: embed(given, torch.tensor([True, False]))):
        torch.testing.assert_close(module.loss(batch), empty, rtol=0, atol=0)  # type: ignore[arg-type]
    assert not torch.equal(module.loss(batch), empty)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Text expects batch\['caption'\], a list of 2 strings, got None"):
        module.loss({key: value for key, value in batch.items() if key != "caption"})  # type: ignore[arg-type]


def test_what_a_pipeline_looks_for_in_vain_is_said(folders: dict[str, str]) -> None:
    said = "set pipeline.transformer.register_to_config(guidance_embeds=False) before the call"
    for name, there in (("chroma_plain", 1), ("flux_plain", 0)):
        module = of(name, folders)
        found = config_difference(module.denoiser, getattr(diffusers, SERVED[name]))
        assert str(found).count(said) == there


@pytest.mark.parametrize(
    "name", ["Flux2Pipeline", "QwenImageEditPlusPipeline", "ZImageOmniPipeline", "KandinskyV22InpaintPipeline"]
)
def test_a_sibling_that_is_told_otherwise_is_no_family_of_its_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"base model: expected a pipeline .* got {name}, (whose|of which)"):
        family_of({"_class_name": name}, "somewhere")


def test_an_edit_model_may_be_shown_a_picture_of_the_samples_own(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "flux_kontext_edit"
    module, batch = of(name, folders, reference="picture"), sample()
    for loss in (module.loss, module.inpaint):
        with pytest.raises(
            ValueError, match=r"that all have a reference with picture, .* 'photo0': add NAME.reference"
        ):
            loss(batch)  # type: ignore[operator]
    batch["reference"] = batch["image"].flip(-1)
    with pytest.raises(ValueError, match=r"a reference with picture, .* got some without, such as 'photo1'"):
        module.loss(batch | {"has_reference": torch.tensor([True, False])})  # type: ignore[arg-type]
    filled: list[Any] = []
    ours = caught(module.denoiser, lambda: filled.append(module.inpaint(batch)))  # type: ignore[arg-type]
    pipeline = diffusers.FluxKontextInpaintPipeline.from_pretrained(folders[name])
    in_the_order_of_training(pipeline.vae)
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    noise = normal(key(module.seed, batch["position"], Stream.SAMPLER), (16, 4, 6))
    images: list[Tensor] = []
    shown = {"image_reference": batch["reference"].float() / 255, **UNGUIDED[name]}
    theirs = caught(pipeline.transformer, lambda: images.append(answer(pipeline, name, batch, noise, **shown)))
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert_same_call(mine, other, atol=1e-6 if number == 0 else 1e-5)
    decoded = module.encoder.decode(pipeline._unpack_latents(images[0], 32, 48, 8).reshape(noise.shape))
    torch.testing.assert_close(filled[0].inpainted, decoded, rtol=0, atol=1e-5)
    fed = caught(module.denoiser, lambda: module.loss(batch))[0]["hidden_states"]  # type: ignore[arg-type]
    vae = module.encoder.vae
    whole = vae.normalize(vae.posterior(batch["reference"].float() / 255).mean)
    torch.testing.assert_close(unpack(fed[:, 6:], 4, 6), whole, rtol=0, atol=1e-5)
    latents = module.encode(batch)  # type: ignore[arg-type]
    assert torch.equal(latents.target, of("flux_plain", folders).encode(batch).target)  # type: ignore[arg-type]
    assert reference_call(module.layout)[0].endswith(
        "image_reference=the picture at the image's size, a tensor, and _auto_resize=False"
    )
    with pytest.raises(ValueError, match=r"expected one of masked, image for QwenImageEditLayout, got 'picture'"):
        of("qwen_image_edit", folders, reference="picture")


def test_what_qwen_image_edit_is_shown_and_told(folders: dict[str, str]) -> None:
    module = of("qwen_image_edit", folders)
    (said,) = reference_call(module.layout)
    assert "call it with image=torch.where(mask > 0.5, 0.502, image), as PIL pictures" in said
    (said,) = reference_call(of("qwen_image_edit", folders, reference="image").layout)
    assert "call it with image=image, as PIL pictures" in said
    with pytest.raises(ValueError, match=r"text.length: expected null for Qwen-Image-Edit, .*; got 64"):
        of("qwen_image_edit", folders, text=TextOptions(length=64))
    odd = {name: value[..., :24, :] if name in ("image", "mask") else value for name, value in sample().items()}
    with pytest.raises(ValueError, match=r"packing needs an even number of latent rows|multiples of 2, got 3 x 6"):
        module.loss(odd)  # type: ignore[arg-type]


def test_mistakes_are_named(folders: dict[str, str]) -> None:
    message = r"base.train: Stable Diffusion 1.x and 2.x is trained by channels \(.*\); plain \(.*\); .*; got 'edit'"
    with pytest.raises(ValueError, match=message):
        BaseModel(folders["sd15_plain"], train="edit")
    module = module_of(folders["sd15_plain"])
    latents = module.encode(sample())._replace(target=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target: expected the whole images' latents for PlainLayout, got None"):
        inpaint_latents(module.denoiser, module.scheduler, PlainLayout(), latents, torch.zeros(2, 4, 4, 6), 1)
