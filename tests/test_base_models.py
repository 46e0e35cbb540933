"""Each base model from its folder: two training steps, resume, export, load in diffusers' pipeline, sample.

What the pipeline hands its denoiser is caught and compared with what training and our own sampling handed it.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import pytest
import tiny_folders
import torch
from diffusers import DiffusionPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from lightning.pytorch.callbacks import ModelCheckpoint
from quiet_trainer import QUIET, quiet_trainer
from tiny_folders import BASES, CONFIGS, config_over
from tiny_models import tiny_batch
from torch import Tensor, nn

from datamodules import WebDatasetDataModule
from inpaint_module.base_models import (
    FluxFillLayout,
    base_model,
    first_layer,
    load_denoiser,
    load_scheduler,
    load_text,
    unpack,
)
from inpaint_module.base_models.families import clip_skip_difference
from inpaint_module.encoder import InpaintLatents
from inpaint_module.export import export
from inpaint_module.masks import Boxes
from inpaint_module.randomness import Stream, key, normal
from inpaint_module.trained import load_weights, module_from_configs
from inpaint_module.training.averages import EMA
from inpaint_module.training.checkpoints import VerifiedCheckpointIO
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.resume import ExactResume

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended"),  # the stream goes on by position
    pytest.mark.filterwarnings("ignore:Checkpoint directory .*not empty"),
    pytest.mark.filterwarnings("ignore:a caption fills all 77 tokens"),  # a token a letter
]
CAPTIONS = ["the cat", "a dog"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls its old names


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The config files of each base model, over tiny folders."""
    folder = tmp_path_factory.mktemp("bases")
    return {name: [CONFIGS / "quickstart.yaml", config_over(name, folder)] for name in BASES}


def build(configs: list[Path], *options: str) -> InpaintDiffusion:
    common = ["--model.guidance_scale=1", "--model.sampling_steps=2", "--model.optimizer.lr=1e-3"]
    common += ["--model.base.dtype=float32", "--model.base.text.dtype=float32"]  # to compare to the last digits
    return module_from_configs(configs, [*common, *options])


def fit(module: InpaintDiffusion, folder: Path, steps: int, resume: Path | None = None, *, ema: bool = True) -> Path:
    callbacks: list[Any] = [ExactResume(), ModelCheckpoint(folder, save_last=True, every_n_train_steps=1)]
    callbacks += [EMA(0.5)] if ema else []
    limits = {"num_sanity_val_steps": 0, "limit_train_batches": 4, "limit_val_batches": 1, "val_check_interval": 2}
    trainer = quiet_trainer(steps, callbacks=callbacks, plugins=[VerifiedCheckpointIO()], **limits)
    data = WebDatasetDataModule(
        "embedded:train", "embedded:val", batch_size=2, val_batch_size=2, image_size=32, mask_generator=Boxes(), seed=0
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return folder / "last.ckpt"


def caught(module: nn.Module, action: Any) -> list[dict[str, Any]]:
    """The arguments of each call of `module` while `action` runs, by name."""
    calls: list[dict[str, Any]] = []
    names = list(inspect.signature(module.forward).parameters)

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append({**dict(zip(names, args, strict=False)), **kwargs})

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        action()
    finally:
        handle.remove()
    return calls


def in_the_order_of_training(vae: nn.Module) -> None:
    """Put a pipeline's VAE in the memory format of ours; in another, sums are rounded otherwise."""
    if all(weight.ndim < 5 for weight in vae.parameters()):
        vae.to(memory_format=torch.channels_last)


def flat(call: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a call."""
    found = {}
    for name, value in call.items():
        if isinstance(value, dict):
            found |= flat(value)
        elif isinstance(value, list | tuple):
            found |= {f"{name}.{number}": each for number, each in enumerate(value) if isinstance(each, Tensor)}
        elif isinstance(value, Tensor):
            found[name] = value
    return found


def assert_same_call(ours: dict[str, Any], theirs: dict[str, Any], atol: float = 1e-6) -> None:
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    for name in ours:
        mine, other = torch.broadcast_tensors(ours[name].float(), theirs[name].float())
        torch.testing.assert_close(mine, other, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


def served(pipeline: DiffusionPipeline, sample: dict[str, Any], noise: Tensor, **options: Any) -> Any:
    """The pipeline's answer to a batch, from this noise."""
    tokens = noise
    if isinstance(pipeline, diffusers.FluxFillPipeline):
        tokens = pipeline._pack_latents(noise, *noise.shape)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt=sample["caption"],
        image=sample["image"].float() / 255,
        mask_image=sample["mask"].float(),
        latents=tokens,
        height=32,
        width=48,
        strength=1.0,
        num_inference_steps=2,
        **{"guidance_scale": 30.0 if tokens is not noise else 1.0, "output_type": "pt"} | options,
    ).images


@pytest.mark.parametrize("name", BASES)
def test_train_resume_export_load_sample(
    name: str, configs: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = build(configs[name])
    checkpoint = fit(once, tmp_path / "once", 2)
    if name == "sdxl":  # the one with most conditions; what resumes knows nothing of base models
        half_way = fit(build(configs[name]), tmp_path / "twice", 1)
        again = build(configs[name])
        fit(again, tmp_path / "twice", 2, half_way)
        weights, resumed = once.denoiser.state_dict(), again.denoiser.state_dict()
        assert weights.keys() == resumed.keys()
        assert all(torch.equal(weights[key], resumed[key]) for key in weights)

    module = build(configs[name], "--model.caption_dropout=0")
    base = {key: value.clone() for key, value in module.denoiser.state_dict().items()}
    load_weights(module, checkpoint)
    assert any(not torch.equal(base[key], value) for key, value in module.denoiser.state_dict().items())
    sample = tiny_batch(2, 32, 48) | {"caption": CAPTIONS}
    trained = caught(module.denoiser, lambda: module.loss(sample))[0]
    filled: list[Tensor] = []
    sampled = caught(module.denoiser, lambda: filled.append(module.inpaint(sample).inpainted))

    with said(name):
        export(module, tmp_path / "out", fuse=name == "flux_fill")
    pipeline = getattr(diffusers, module.base.pipeline).from_pretrained(tmp_path / "out")
    in_the_order_of_training(pipeline.vae)
    denoiser = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    noise = normal(key(module.seed, sample["position"], Stream.SAMPLER), (module.encoder.vae.channels, 4, 6))
    # pipelines sample the posterior of the masked image, training takes its mode
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    images: list[Tensor] = []
    output = "latent" if name == "sd3" else "pt"  # see `said`
    calls = caught(denoiser, lambda: images.append(served(pipeline, sample, noise, output_type=output)))
    assert len(calls) == len(sampled) == 2
    assert_same_call(sampled[0], calls[0])
    assert_same_call(sampled[1], calls[1], atol=1e-4)
    image = images[0] if output == "pt" else module.encoder.decode(images[0])
    torch.testing.assert_close(filled[0], image, rtol=0, atol=1e-4)
    call = caught(denoiser, lambda: served(pipeline, sample, noisy_part(trained)))[0]
    assert_same_call({**trained, "timestep": 0}, {**call, "timestep": 0})


def said(name: str) -> AbstractContextManager[Any]:
    """The pipeline of SD3 in diffusers 0.42 decodes without the VAE's shift (issue 13611), and `export` warns of it."""
    shift = "StableDiffusion3InpaintPipeline of the installed diffusers decodes without the VAE's shift_factor"
    return pytest.warns(UserWarning, match=shift) if name == "sd3" else nullcontext()


def noisy_part(call: dict[str, Any]) -> Tensor:
    """The noisy latents (B, C, 4, 6) in what a denoiser was fed."""
    inputs = call.get("hidden_states", call.get("sample"))
    if inputs.ndim == 3:
        return unpack(inputs[..., :64], 4, 6)
    return inputs[:, : 16 if inputs.shape[1] == 33 else 4]


@pytest.mark.parametrize("name", BASES)
def test_step_0_loss_is_the_base_models(name: str, configs: dict[str, list[Path]]) -> None:
    """The same noise, timesteps and captions; the mask and the masked image do nothing yet."""
    grown = build(configs[name])
    sample = tiny_batch(2, 32, 48) | {"caption": CAPTIONS}
    loss = grown.loss(sample)
    base = load_denoiser(str(configs[name][1].with_name(f"{name}_base")))
    channels = first_layer(base)[1].weight.shape[1]
    assert channels < first_layer(grown.denoiser)[1].weight.shape[1]

    layout, grown.denoiser = type(grown.layout), base
    whole = layout.__call__

    def first_channels(self: Any, noisy: Tensor, latents: InpaintLatents) -> Tensor:
        eaten = whole(self, noisy, latents)
        return eaten[..., :channels] if eaten.ndim == 3 else eaten[:, :channels]

    with mock.patch.object(layout, "__call__", first_channels):
        assert torch.equal(grown.loss(sample), loss)


def test_options_of_a_denoiser(configs: dict[str, list[Path]]) -> None:
    path = str(configs["sd15"][1].with_name("sd15_base"))
    plain = load_denoiser(path)
    assert plain.training
    assert not plain.is_gradient_checkpointing
    assert next(plain.parameters()).dtype == torch.float32
    chosen = load_denoiser(path, subfolder="unet", dtype="bfloat16", gradient_checkpointing=True, channels_last=True)
    assert chosen.is_gradient_checkpointing
    assert next(chosen.parameters()).dtype == torch.bfloat16
    assert chosen.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert chosen.state_dict().keys() == plain.state_dict().keys()
    alone = load_denoiser(f"{path}/unet")
    assert torch.equal(alone.conv_in.weight, plain.conv_in.weight)


def test_gradient_checkpointing_changes_no_gradient(configs: dict[str, list[Path]]) -> None:
    sample = tiny_batch(2, 32, 48) | {"caption": CAPTIONS}
    gradients = []
    for chosen in ("true", "false"):
        module = build(configs["sdxl"], f"--model.base.gradient_checkpointing={chosen}")
        module.loss(sample).backward()
        gradients.append([weight.grad for weight in module.denoiser.parameters() if weight.grad is not None])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain)


def test_scheduler_with_changes(configs: dict[str, list[Path]]) -> None:
    path = str(configs["sd15"][1].with_name("sd15_base"))
    assert load_scheduler(path).config == diffusers.DDIMScheduler.from_pretrained(path, subfolder="scheduler").config
    changed = load_scheduler(path, changes={"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    assert changed.config.prediction_type == "v_prediction"
    assert changed.config.beta_start == 0.00085
    with pytest.raises(
        ValueError, match=r"scheduler changes: DDIMScheduler has no predictoin_type; it has .*beta_start"
    ):
        load_scheduler(path, changes={"predictoin_type": "sample"})


def test_sd3_without_its_t5(configs: dict[str, list[Path]]) -> None:
    path = str(configs["sd3"][1].with_name("sd3_base"))
    told = load_text(path, t5=False)({"image": torch.zeros(1, 3, 32, 32), "caption": ["a"]})
    assert told["encoder_hidden_states"].shape == (1, 77 + 256, tiny_folders.WIDTH)
    assert not told["encoder_hidden_states"][:, 77:].any()


@pytest.mark.parametrize("base", ["sd15", "sdxl", "sd3"])
def test_text_of_a_folder_takes_a_clip_skip(configs: dict[str, list[Path]], base: str) -> None:
    path = str(configs[base][1].with_name(f"{base}_base"))
    batch = {"image": torch.zeros(1, 3, 32, 32), "caption": ["a"]}
    plain, skipped = load_text(path), load_text(path, clip_skip=1)
    assert not torch.equal(*(text(batch)["encoder_hidden_states"] for text in (plain, skipped)))  # type: ignore[arg-type]
    assert clip_skip_difference(plain) is None
    assert "call the pipeline with clip_skip=1" in (clip_skip_difference(skipped) or "")


def test_flux_has_no_clip_skip(configs: dict[str, list[Path]]) -> None:
    with pytest.raises(ValueError, match="clip_skip: expected null for Flux, which reads no layer of a CLIP; got 1"):
        load_text(str(configs["flux_fill"][1].with_name("flux_fill_base")), clip_skip=1)


def test_a_layout_without_a_reduction_says_so() -> None:
    with pytest.raises(ValueError, match=r"base\.reduce: expected null, as FluxFillLayout keeps .*; got 'max'"):
        base_model._layout(FluxFillLayout, "max")


def test_mistakes_are_named(configs: dict[str, list[Path]], tmp_path: Path) -> None:
    path = str(configs["sd15"][1].with_name("sd15_base"))
    with pytest.raises(ValueError, match=r"no denoiser at '.*', subfolder None"):
        load_denoiser(str(tmp_path))
    with pytest.raises(ValueError, match=r"denoiser dtype must be one of float32, bfloat16, float16; got 'half'"):
        load_denoiser(path, dtype="half")
    with pytest.raises(ValueError, match=r"no scheduler at '.*', subfolder 'scheduler'"):
        load_scheduler(str(tmp_path))
    with pytest.raises(ValueError, match=r"text dtype must be one of .* got 'half'"):
        load_text(path, dtype="half")
    with (
        mock.patch.dict(sys.modules, {"transformers": None}),
        pytest.raises(ValueError, match="text encoders need transformers: pip install"),
    ):
        load_text(path)
    with pytest.raises(
        ValueError, match=r"base model: expected a pipeline .* StableDiffusion, .* or hub name, got none"
    ):
        load_text(str(tmp_path))
    with pytest.raises(ValueError, match=r"there is no such folder"):
        load_text("neither/a/hub/name")
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": true}')
    with pytest.raises(ValueError, match=r"\(no refiner\) .* or hub name, got StableDiffusionXLImg2ImgPipeline"):
        load_text(str(tmp_path))
