"""`train: controlnet`: the loss of diffusers' example scripts, and the real pipelines, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
import torch.nn.functional as F
from alimama_twin import FluxControlNetInpaintingPipeline, controlnet_of
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from quiet_trainer import QUIET
from test_base_models import CAPTIONS, assert_same_call, caught, fit, in_the_order_of_training
from tiny_folders import CONTROLNET_BASES, saved, stable_diffusion
from tiny_models import tiny_batch
from torch import Tensor

from inpaint_module.base_models import BaseModel, ControlNetOptions, LoRA
from inpaint_module.export import export
from inpaint_module.randomness import Stream, key, normal
from inpaint_module.trained import load_weights
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .*not empty"),
    pytest.mark.filterwarnings("ignore:a caption fills all 77 tokens"),
    pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning"),  # FluxControlNetModel uses it
]
HEIGHT, WIDTH = 32, 48


class Served(NamedTuple):
    """A family's pipeline, and what it is called with beside the common."""

    pipeline: str
    call: Callable[[Tensor, Tensor], dict[str, Any]]


def pixels_with_a_hole(image: Tensor, mask: Tensor) -> dict[str, Any]:
    """As https://huggingface.co/lllyasviel/control_v11p_sd15_inpaint makes it."""
    control_image = image.clone()
    control_image[mask.expand_as(image) > 0.5] = -1.0
    return {"image": image, "mask_image": mask, "control_image": control_image, "strength": 1.0, "guidance_scale": 1.0}


def picture_and_mask(image: Tensor, mask: Tensor) -> dict[str, Any]:
    """Tensors, which these pipelines take as they are: -1..1."""
    return {"control_image": image * 2 - 1, "control_mask": mask}


def grey_hole(image: Tensor, mask: Tensor) -> dict[str, Any]:
    control_image = torch.where(mask > 0.5, 0.0, image * 2 - 1)
    return {"image": image, "mask_image": mask, "control_image": control_image, "strength": 1.0, "guidance_scale": 3.5}


def hidden_and_shown(image: Tensor, mask: Tensor) -> dict[str, Any]:
    control_image = torch.where(mask > 0.5, 0.0, image * 2 - 1)
    return {"image": image * 2 - 1, "mask_image": mask, "control_image": control_image, "guidance_scale": 0.0}


SERVED = {
    "sd15_controlnet": Served("StableDiffusionControlNetInpaintPipeline", pixels_with_a_hole),
    "sd15_inpainting": Served("StableDiffusionControlNetInpaintPipeline", pixels_with_a_hole),
    "sdxl_controlnet": Served("StableDiffusionXLControlNetInpaintPipeline", pixels_with_a_hole),
    "sd3_controlnet": Served(
        "StableDiffusion3ControlNetInpaintingPipeline",
        lambda image, mask: {**picture_and_mask(image, mask), "guidance_scale": 1.0},
    ),
    "flux_controlnet": Served("FluxControlNetInpaintPipeline", grey_hole),
    "flux_controlnet_68": Served(
        "FluxControlNetInpaintingPipeline",
        lambda image, mask: {**picture_and_mask(image, mask), "guidance_scale": 3.5},
    ),
    "qwen_image_controlnet": Served("QwenImageControlNetInpaintPipeline", picture_and_mask),
    "z_image_controlnet": Served("ZImageControlNetInpaintPipeline", hidden_and_shown),
}
OPTIONS = {"flux_controlnet_68": {"controlnet": ControlNetOptions(channels=68)}}
FIRST = "sd15_controlnet"
DEEP = [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in SERVED if name != FIRST)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("controlnet")
    bases = {
        **CONTROLNET_BASES,
        "sd15_inpainting": lambda: stable_diffusion(9),
    }  # whose U-Net eats mask and masked image
    return {name: saved(bases[name](), folder / name) for name in SERVED}


def module_of(path: str, moved: bool = True, **options: Any) -> InpaintDiffusion:
    """With weights that tell something, if `moved`, as those of a new ControlNet's outputs are zero."""
    options = OPTIONS.get(Path(path).name, {}) | options
    module = InpaintDiffusion(BaseModel(path, train="controlnet", **options), sampling_steps=3)
    if moved:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in module.denoiser.parameters():
                weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return module


def sample() -> dict[str, Any]:
    return tiny_batch(2, HEIGHT, WIDTH) | {"caption": CAPTIONS}


def loss_by_hand(name: str, module: InpaintDiffusion, batch: dict[str, Any]) -> Tensor:
    """As train_controlnet.py, train_controlnet_sdxl.py, train_controlnet_sd3.py, train_controlnet_flux.py."""
    vae, base = module.encoder.vae, module.control.base.model  # type: ignore[union-attr]
    image, mask = batch["image"].float() / 255, batch["mask"].float()
    fill = 0.0 if name in ("sd3_controlnet", "qwen_image_controlnet", "flux_controlnet_68") else 0.5
    masked, latents = (
        vae.normalize(vae.posterior(each).mean) for each in (torch.where(mask > 0.5, fill, image), image)
    )
    noise = normal(key(module.seed, batch["position"], Stream.NOISE), latents.shape[1:])
    timesteps = module.objective(latents, noise, key(module.seed, batch["position"], Stream.TIMESTEP)).timesteps
    told, controlnet = module.conditioning(batch), module.denoiser  # type: ignore[arg-type]
    if name in ("sd15_controlnet", "sd15_inpainting", "sdxl_controlnet"):
        condition = pixels_with_a_hole(image, mask)["control_image"]
        noisy = module.scheduler.add_noise(latents, noise, timesteps)
        down, mid = controlnet(noisy, timesteps, controlnet_cond=condition, return_dict=False, **told)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        cells = F.interpolate(mask, size=(4, 6))
        inputs = torch.cat([noisy, cells, masked], dim=1) if name == "sd15_inpainting" else noisy
        prediction = base(inputs, timesteps, **residuals, return_dict=False, **told)[0]
        return F.mse_loss(prediction.float(), noise.float(), reduction="mean")
    sigmas = (timesteps / 1000).reshape(-1, 1, 1, 1)
    noisy, target = (1.0 - sigmas) * latents + sigmas * noise, noise - latents
    if name == "sd3_controlnet":  # but for the pooled text, which the script gives the ControlNet and no pipeline does
        condition = torch.cat([masked, 1 - F.interpolate(mask, size=(4, 6))], dim=1)
        pooled = {"pooled_projections": torch.zeros_like(told["pooled_projections"])}
        named = {"hidden_states": noisy, "timestep": timesteps, "return_dict": False}
        residuals = controlnet(**named, controlnet_cond=condition, **{**told, **pooled})[0]
        prediction = base(**named, block_controlnet_hidden_states=residuals, **told)[0]
        return F.mse_loss(prediction.float(), target.float())
    if name == "z_image_controlnet":  # no script trains one: as train_dreambooth_lora_z_image.py
        condition = torch.cat([masked, 1 - F.interpolate(mask, size=(4, 6)), masked], dim=1).unsqueeze(2)
        inputs = list(noisy.unsqueeze(2).unbind(dim=0)), (1000 - timesteps) / 1000
        residuals = controlnet(*inputs, told["cap_feats"], list(condition))
        said = base(*inputs, told["cap_feats"], controlnet_block_samples=residuals, return_dict=False)[0]
        return F.mse_loss(-torch.stack(said, dim=0).squeeze(2), target)
    pipeline, (height, width) = diffusers.FluxPipeline, noisy.shape[-2:]
    if name == "qwen_image_controlnet":  # no script trains one: as that of Flux, told what the pipeline tells
        masked = torch.cat([masked, 1 - F.interpolate(mask, size=(4, 6))], dim=1)
        packed, condition = (pipeline._pack_latents(each, 2, each.shape[1], 4, 6) for each in (noisy, masked))
        shapes = [(1, height // 2, width // 2)] * 2
        named = {"hidden_states": packed, "timestep": timesteps / 1000, "img_shapes": shapes, "return_dict": False}
        residuals = controlnet(controlnet_cond=condition, **named, **told)
        prediction = base(**named, controlnet_block_samples=residuals, **told)[0]
        prediction = pipeline._unpack_latents(prediction, 32, 48, 8).to(memory_format=torch.channels_last)
        return F.mse_loss(prediction, target)
    if name == "flux_controlnet_68":
        masked = torch.cat([masked, 1 - F.interpolate(mask, size=(4, 6))], dim=1)
    packed, condition = (pipeline._pack_latents(each, 2, each.shape[1], 4, 6) for each in (noisy, masked))
    ids = pipeline._prepare_latent_image_ids(2, height // 2, width // 2, noisy.device, noisy.dtype)
    named = {"hidden_states": packed, "timestep": timesteps / 1000, "img_ids": ids, "return_dict": False, **told}
    assert told["guidance"].tolist() == [3.5, 3.5]
    double, single = controlnet(controlnet_cond=condition, **named)
    prediction = base(**named, controlnet_block_samples=double, controlnet_single_block_samples=single)[0]
    # the script takes the mean over tokens: the same number, summed in another order; this is ours
    prediction = pipeline._unpack_latents(prediction, 8 * height, 8 * width, 8).to(memory_format=torch.channels_last)
    return F.mse_loss(prediction.float(), target.float(), reduction="mean")


@pytest.mark.parametrize("name", SERVED)
def test_the_loss_is_that_of_the_example_scripts(name: str, folders: dict[str, str]) -> None:
    module = module_of(folders[name])
    assert torch.equal(module.loss(sample()), loss_by_hand(name, module, sample()))  # type: ignore[arg-type]


PACKED = ("qwen_image_controlnet", "flux_controlnet_68")  # whose pipelines take noise in tokens


def answer(pipeline: Any, name: str, batch: dict[str, Any], noise: Tensor) -> Tensor:
    """The pipeline's latents, from this noise."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=batch["caption"],
        latents=pipeline._pack_latents(noise, 2, 16, 4, 6) if name in PACKED else noise,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=3,
        output_type="latent",
        **{"controlnet_conditioning_scale": 1.0}
        | SERVED[name].call(batch["image"].float() / 255, batch["mask"].float()),
    ).images


def pipeline_of(name: str, base: str, controlnet: Path) -> DiffusionPipeline:
    """The real pipeline over the base model's folder, with an exported ControlNet."""
    if name == "flux_controlnet_68":
        pipeline: Any = FluxControlNetInpaintingPipeline.from_pretrained(base)
        pipeline.controlnet = controlnet_of(controlnet)
        return pipeline
    loaded = diffusers.AutoModel.from_pretrained(str(controlnet))
    return getattr(diffusers, SERVED[name].pipeline).from_pretrained(base, controlnet=loaded)


@pytest.mark.parametrize("name", SERVED)
def test_validation_is_the_pipeline(
    name: str, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ControlNet and base are fed at each step, and the picture."""
    module, batch = module_of(folders[name]), sample()
    assert module.control
    filled: list[Any] = []
    networks = (module.denoiser, module.control.base.model)
    ours = caught(networks[0], lambda: filled.append(caught(networks[1], lambda: filled.append(module.inpaint(batch)))))  # type: ignore[arg-type]
    export(module, tmp_path / "out")
    pipeline: Any = pipeline_of(name, folders[name], tmp_path / "out")
    assert type(pipeline).__name__ == module.base.pipeline
    in_the_order_of_training(pipeline.vae)
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    noise = normal(key(module.seed, batch["position"], Stream.SAMPLER), (module.encoder.vae.channels, 4, 6))
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    found: list[Any] = []
    theirs = caught(
        pipeline.controlnet,
        lambda: found.append(caught(denoiser, lambda: found.append(answer(pipeline, name, batch, noise)))),
    )
    (result, our_base), (latents, their_base) = filled, found
    assert len(ours) == len(theirs) == len(our_base) == len(their_base) == 3
    for number in range(3):
        for mine, other in ((ours, theirs), (our_base, their_base)):
            assert_same_call(mine[number], other[number], atol=1e-6 if number == 0 else 1e-5)
    if latents.ndim == 3:
        latents = pipeline._unpack_latents(latents, HEIGHT, WIDTH, 8).reshape(noise.shape)
    decoded = module.encoder.decode(latents)
    torch.testing.assert_close(result.inpainted, decoded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DEEP)
def test_training_feeds_what_the_pipeline_feeds(name: str, folders: dict[str, str]) -> None:
    """The condition of training is that of sampling, which the test above compares with the pipeline's."""
    module, batch = module_of(folders[name]), sample()
    trained = caught(module.denoiser, lambda: module.loss(batch))[0]  # type: ignore[arg-type]
    sampled = caught(module.denoiser, lambda: module.inpaint(batch))[0]  # type: ignore[arg-type]
    told = "control_context" if name == "z_image_controlnet" else "controlnet_cond"
    assert all(torch.equal(mine, other) for mine, other in zip(trained[told], sampled[told], strict=True))
    assert trained["conditioning_scale"] == sampled["conditioning_scale"] == 1.0


@pytest.mark.parametrize("name", DEEP)
def test_resumes_to_the_bit_and_keeps_the_base(name: str, folders: dict[str, str], tmp_path: Path) -> None:
    once, again = (module_of(folders[name], moved=False) for _ in range(2))
    before = once.control.base.fingerprint()  # type: ignore[union-attr]
    checkpoint = fit(once, tmp_path / "once", 2, ema=False)
    first = fit(module_of(folders[name], moved=False), tmp_path / "twice", 1, ema=False)
    fit(again, tmp_path / "twice", 2, first, ema=False)
    weights, resumed = once.denoiser.state_dict(), again.denoiser.state_dict()
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[each], resumed[each]) for each in weights)
    start = module_of(folders[name], moved=False).denoiser.state_dict()
    assert any(not torch.equal(start[each], weights[each]) for each in weights)
    assert once.control.base.fingerprint() == before  # type: ignore[union-attr]
    saved_names = {
        each for each in torch.load(checkpoint, weights_only=True)["state_dict"] if each.startswith("denoiser.")
    }
    assert saved_names == {f"denoiser.{each}" for each in weights}
    other = module_of(folders[name], moved=False)
    with torch.no_grad():
        next(other.control.base.model.parameters()).add_(1)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="this checkpoint was trained with a base model whose weights have sha256"):
        load_weights(other, checkpoint)


def test_a_new_controlnet_tells_nothing_and_is_always_the_same(folders: dict[str, str]) -> None:
    module, same = (module_of(folders[FIRST], moved=False) for _ in range(2))
    plain = InpaintDiffusion(BaseModel(folders[FIRST], train="plain"))
    batch: Any = sample()
    torch.testing.assert_close(module.loss(batch), plain.loss(batch), rtol=0, atol=0)
    weights, others = module.denoiser.state_dict(), same.denoiser.state_dict()
    assert all(torch.equal(weights[each], others[each]) for each in weights)
    assert not any(name.startswith(("base", "control.")) for name in module.state_dict())
    assert {id(weight) for weight in module.parameters()} == {id(weight) for weight in module.denoiser.parameters()}


def test_alimamas_controlnet_has_their_names_and_goes_on(folders: dict[str, str], tmp_path: Path) -> None:
    """The config keys of controlnet_flux.py there; a folder of theirs is known by one of them."""
    path, alone = folders["flux_controlnet_68"], {"controlnet": None}
    module, batch = module_of(path), sample()
    export(module, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    kept = {"patch_size", "in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads"}
    kept |= {"joint_attention_dim", "pooled_projection_dim", "guidance_embeds", "axes_dims_rope"}
    assert config["_class_name"] == "FluxControlNetModel"
    assert {name for name in config if not name.startswith("_")} == kept | {"extra_condition_channels"}
    assert "https://github.com/alimama-creative" in (tmp_path / "out" / "README.md").read_text()
    for options in (ControlNetOptions(str(tmp_path / "out")), ControlNetOptions(str(tmp_path / "out"), channels=68)):
        again = module_of(path, moved=False, controlnet=options)
        torch.testing.assert_close(again.loss(batch), module.loss(batch), rtol=0, atol=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"base.controlnet.channels: expected 68, as the ControlNet at .*, got 64"):
        module_of(path, controlnet=ControlNetOptions(str(tmp_path / "out"), channels=64))
    with pytest.raises(ValueError, match=r"base.controlnet.channels: expected 64 or 68 beside this base model, got 9"):
        module_of(path, controlnet=ControlNetOptions(channels=9))
    with pytest.raises(ValueError, match=r"base.controlnet.channels: expected null beside this base model, got 68"):
        module_of(folders[FIRST], controlnet=ControlNetOptions(channels=68))
    assert module_of(path, **alone).control.condition.in_channels(16) == 64  # type: ignore[union-attr]


def test_scale_and_dropout(folders: dict[str, str]) -> None:
    scaled = module_of(folders[FIRST], controlnet=ControlNetOptions(scale=0.0))
    plain = InpaintDiffusion(BaseModel(folders[FIRST], train="plain"))
    batch: Any = sample()
    torch.testing.assert_close(scaled.loss(batch), plain.loss(batch), rtol=0, atol=0)
    dropped = module_of(folders[FIRST], controlnet=ControlNetOptions(dropout=1.0))
    assert (caught(dropped.denoiser, lambda: dropped.loss(batch))[0]["controlnet_cond"] == -1).all()
    some = module_of(folders[FIRST], controlnet=ControlNetOptions(dropout=0.5)).control
    assert some
    empty, positions = torch.zeros(400, 1, 2, 2, dtype=torch.bool), torch.arange(400)
    masks = some.masks(empty, 0, positions)
    assert 150 < int(masks[:, 0, 0, 0].sum()) < 250
    assert torch.equal(masks[7:9], some.masks(empty[:2], 0, positions[7:9]))
    assert not caught(dropped.denoiser, lambda: dropped.inpaint(batch))[0]["controlnet_cond"].eq(-1).all()


def test_goes_on_from_an_exported_one_also_with_lora(folders: dict[str, str], tmp_path: Path) -> None:
    module = module_of(folders[FIRST])
    export(module, tmp_path / "first")
    options = ControlNetOptions(str(tmp_path / "first"))
    loaded = module_of(folders[FIRST], moved=False, controlnet=options)
    batch: Any = sample()
    torch.testing.assert_close(loaded.loss(batch), module.loss(batch), rtol=0, atol=0)
    with_lora = module_of(folders[FIRST], moved=False, controlnet=options, lora=LoRA(2))
    checkpoint = fit(with_lora, tmp_path / "run", 1, ema=False)
    names = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all("lora" in name or name.endswith("sha256") for name in names if name.startswith("denoiser."))
    expected = with_lora.loss(batch)
    with pytest.raises(ValueError, match="fuse: expected true for a ControlNet, whose LoRA no pipeline loads"):
        export(with_lora, tmp_path / "none")
    export(with_lora, tmp_path / "second", fuse=True)
    fused = module_of(folders[FIRST], moved=False, controlnet=ControlNetOptions(str(tmp_path / "second")))
    torch.testing.assert_close(fused.loss(batch), expected, rtol=1e-5, atol=1e-6)


def test_mistakes_are_named(folders: dict[str, str]) -> None:
    path = folders[FIRST]
    with pytest.raises(ValueError, match=r"base.controlnet: expected null with train: plain, which trains none"):
        BaseModel(path, train="plain", controlnet=ControlNetOptions())
    with pytest.raises(ValueError, match=r"base.controlnet.dropout: expected a share in 0..1, got 2"):
        ControlNetOptions(dropout=2)
    with pytest.raises(ValueError, match=r"base.controlnet.layers: expected at least 1, or null, got 0"):
        ControlNetOptions(layers=0)
    with pytest.raises(ValueError, match=r"base.lora: expected null for a new ControlNet"):
        BaseModel(path, train="controlnet", lora=LoRA(2))
    with pytest.raises(
        ValueError, match=r"base.controlnet.path: expected a ControlNetModel, got a UNet2DConditionModel"
    ):
        BaseModel(path, train="controlnet", controlnet=ControlNetOptions(path))
    with pytest.raises(ValueError, match=r"base.controlnet.layers: expected null, as a ControlNet of a U-Net has all"):
        BaseModel(path, train="controlnet", controlnet=ControlNetOptions(layers=2))
    with pytest.raises(ValueError, match=r"base.controlnet.layers: expected at most 1, those of the base model, got 2"):
        BaseModel(folders["sd3_controlnet"], train="controlnet", controlnet=ControlNetOptions(layers=2))


def test_a_controlnet_for_something_else_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    kind = BaseModel(folders["sd3_controlnet"], train="controlnet").denoiser
    config = {**kind.config, "extra_conditioning_channels": 0}
    type(kind).from_config(config).save_pretrained(tmp_path / "canny")
    message = "expected a condition of 17 channels, that of inpainting, in pos_embed_input.proj, got 16 at"
    with pytest.raises(ValueError, match=message):
        module_of(folders["sd3_controlnet"], controlnet=ControlNetOptions(str(tmp_path / "canny")))


@pytest.mark.parametrize("name", ["sd3_controlnet", "flux_controlnet"])
def test_sizes_that_do_not_fit_are_refused(name: str, folders: dict[str, str]) -> None:
    batch: Any = tiny_batch(2, 32, 40) | {"caption": CAPTIONS}
    with pytest.raises(ValueError, match="multiples of"):
        module_of(folders[name]).loss(batch)
