"""Training from a latent cache: the same loss, half of the VAE's work."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from diffusers import DDIMScheduler
from latent_caches import CONFIGS, TRAIN, batches, data_module, encoder
from on_gpu import on_gpu
from quiet_trainer import QUIET
from tiny_models import tiny_batch, tiny_denoiser, tiny_module, tiny_vae

import train
from inpaint_module import InpaintEncoder
from inpaint_module.base_models import ModelParts, StableDiffusionLayout
from inpaint_module.clean_latents import encode_beside, encode_clean
from inpaint_module.training.inpaint_diffusion import InpaintDiffusion
from inpaint_module.training.run_folder import MetricRow, read_metrics

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # a resume goes on there
    pytest.mark.filterwarnings("ignore:.*not supported by the model summary.*"),
]


@pytest.mark.parametrize("max_batch", [8, None], ids=["one pass", "passes of 4"])
def test_the_loss_is_that_without_the_cache(max_batch: int | None, cache: Path) -> None:
    """To the bit if the VAE always gets 4 images; in a batch of another size its sums may round otherwise."""
    denoiser, scheduler = tiny_denoiser(in_channels=33, out_channels=16), DDIMScheduler(prediction_type="v_prediction")
    module = InpaintDiffusion(
        ModelParts(denoiser, encoder(max_batch=max_batch), StableDiffusionLayout("max"), scheduler)
    )
    tolerance = 1e-5 if max_batch else 0.0
    for batch in batches(data_module(cache), 4):
        plain = {name: value for name, value in batch.items() if name != "latents"}
        expected, got = module.encode(plain), module.encode(batch)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
        assert module.loss(batch).item() == pytest.approx(module.loss(plain).item(), rel=tolerance / 10, abs=0)


@pytest.mark.cuda
def test_the_loss_on_a_gpu_is_that_without_the_cache() -> None:
    module, plain = tiny_module().cuda(), on_gpu(tiny_batch(3))
    cached = plain | {"latents": encode_clean(module.encoder, plain["image"])}
    assert module.loss(cached).item() == pytest.approx(module.loss(plain).item(), rel=1e-3)  # TF32 convolutions


def test_the_vae_sees_the_masked_images_alone() -> None:
    module, batch = tiny_module(), tiny_batch(3)
    batch["latents"] = encode_clean(module.encoder, batch["image"])
    vae = module.encoder.vae
    with mock.patch.object(vae.module, "encode", wraps=vae.module.encode) as encode:
        module.loss(batch)
    assert [call.args[0].shape for call in encode.call_args_list] == [(3, 3, 32, 48)]


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"max_batch": 2, "normalize": True}])
def test_clean_latents_are_the_encoders_targets(options: dict[str, Any]) -> None:
    layer, batch = InpaintEncoder(tiny_vae(), **options), tiny_batch(3, 35, 52)
    expected = layer(batch["image"], batch["mask"], target=True)
    got = encode_beside(layer, batch["image"], batch["mask"], encode_clean(layer, batch["image"]))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def fit(*options: str) -> None:
    """The quickstart with the overlay of caches, and a checkpoint every two steps."""
    os.environ.pop("PL_GLOBAL_SEED", None)  # of the run before
    saves = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"every_n_train_steps": 2}}
    callbacks = [saves, {"class_path": "inpaint_module.training.run_record.RunRecord"}]
    Path("saves.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    configs = [f"--config={CONFIGS / name}" for name in ("quickstart.yaml", "latent_cache.yaml")]
    configs.append("--config=saves.yaml")
    arguments = ["train.py", "fit", "--debug", *configs, *TRAIN, *options]
    with mock.patch.dict(os.environ), mock.patch.object(sys, "argv", arguments):
        assert train.main() == 0


def losses(run: Path) -> list[MetricRow]:
    return [row for row in read_metrics(run / "metrics.csv") if row.metric == "train/loss"]


def test_the_overlay_trains_resumes_and_refuses(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "latents").symlink_to(cache)
    for steps in (2, 4):
        with mock.patch("inpaint_module.training.inpaint_diffusion.encode_beside", wraps=encode_beside) as beside:
            fit(f"--trainer.max_steps={steps}")
        assert beside.call_count == 2  # the second fit goes on
    fit("--trainer.max_steps=4", "--trainer.logger.init_args.name=whole")
    resumed, whole = (losses(tmp_path / "runs" / name) for name in ("latent_cache", "whole"))
    assert len(whole) == 4
    assert resumed == whole
    name = "--trainer.logger.init_args.name=refused"
    with pytest.raises(ValueError, match=r"made by a VAE whose weights have sha256 .*, but the encoder holds"):
        fit("--trainer.max_steps=2", name, "--model.encoder.init_args.vae.init_args.dtype=bfloat16")
    with pytest.raises(ValueError, match=r"data.image_size: expected \(64, 64\), .* got \(72, 72\)"):
        fit("--trainer.max_steps=2", name, "--data.image_size=72")
