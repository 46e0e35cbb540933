"""Where a latent cache does not fit it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from data_fixtures import encode, photo
from latent_caches import CONFIGS, SIDE, data_module, encoder, tags
from quiet_trainer import QUIET
from tiny_models import tiny_batch, tiny_vae

from datamodules import cache_latents as latents_command
from datamodules.cache_latents import cache_latents, main, parts_from_configs
from inpaint_module import InpaintEncoder
from inpaint_module.base_models import StableDiffusionLayout
from inpaint_module.clean_latents import check_clean, encode_beside

pytestmark = QUIET


def test_another_vae_or_posterior_is_refused() -> None:
    layer = InpaintEncoder(tiny_vae())
    tag = tags(vae_sha256=layer.vae.fingerprint().hex())
    check_clean(tag, layer)
    with pytest.raises(ValueError, match=r"sha256 abababababababab..., but the encoder holds .*make the cache again"):
        check_clean(tags(), layer)
    drawing, batch = InpaintEncoder(tiny_vae(), posterior="sample"), tiny_batch(2)
    for refused in (
        lambda: check_clean(tag, drawing),
        lambda: encode_beside(drawing, batch["image"], batch["mask"], torch.zeros(2, 4, 4, 6)),
    ):
        with pytest.raises(ValueError, match="expected mode with cached latents, which are modes; got sample"):
            refused()


def test_images_that_are_resized_beside_cropped_ones_are_refused() -> None:
    layer, clean = InpaintEncoder(tiny_vae(), sizing="diffusers"), torch.zeros(2, 4, 4, 5)
    batch = tiny_batch(2, 32, 40)
    encode_beside(layer, batch["image"], batch["mask"], clean)
    batch = tiny_batch(2, 32, 44)
    with pytest.raises(
        ValueError, match="sizing: expected comfyui with cached latents of images 32 x 44, which were cr"
    ):
        encode_beside(layer, batch["image"], batch["mask"], clean)


def test_mixed_sources_sizes_and_buckets_are_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"one kind everywhere, or nowhere, got .*: float32 .*; .*: none"):
        data_module([str(cache), "embedded:train"]).train_dataloader()
    with pytest.raises(ValueError, match=r"data.image_size: expected \(64, 64\), as .* have, got \(128, 64\)"):
        data_module(cache, image_size=(128, 64)).train_dataloader()
    with pytest.raises(ValueError, match=r"data.order.bucket_step: expected null for shards with cached latents"):
        data_module(cache, bucket_step=8).train_dataloader()
    assert data_module("embedded:train").latents is None


def test_a_sample_that_is_not_as_the_others_is_refused(cache: Path) -> None:
    cached, plain = data_module(cache), data_module("embedded:train")
    assert cached.latents is not None
    sample = cached.train_set.read(0)._replace(position=0)
    with pytest.raises(ValueError, match=r"expected no latents.safetensors, as the first sample .*, got one"):
        plain.train_decoder(sample)
    other = sample._replace(fields={**sample.fields, "webp": encode(photo(1, 40, 48), "WEBP")})
    with pytest.raises(ValueError, match=r"an image of \(H, W\) \(64, 64\) for its latents, got \(48, 40\)"):
        cached.train_decoder.for_cache(cached.latents)(other)


def test_validation_takes_cached_shards_as_images(cache: Path) -> None:
    batch = next(iter(data_module(cache, val_shards=str(cache)).val_dataloader()))
    assert "latents" not in batch
    assert batch["image"].shape == (4, 3, SIDE, SIDE)


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ({}, {"crops": 0}, "crops: expected at least 1, got 0"),
        ({}, {"dtype": "float64"}, "dtype: expected one of float32, bfloat16, float16, got 'float64'"),
        ({"bucket_step": 8}, {}, "data.order.bucket_step: expected null"),
        ({"source_weights": [1.0]}, {}, "data.order.source_weights, data.order.repeats: expected null; cache"),
    ],
)
def test_what_a_cache_cannot_serve_is_refused(
    data: dict[str, Any], arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        cache_latents(data_module(["embedded:val"], **data), encoder(), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_cache_is_not_cached_nor_is_a_draw(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected shards of images, got cached latents: float32"):
        cache_latents(data_module(cache), encoder(), tmp_path)
    with pytest.raises(ValueError, match=r"encoder.posterior: expected mode, which can be kept; got sample"):
        cache_latents(data_module("embedded:val"), encoder(posterior="sample"), tmp_path)


def test_latents_that_the_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    layer = encoder()
    large = mock.patch.object(latents_command, "encode_clean", return_value=torch.full((4, 16, 8, 8), 1e6))
    message = r"sample '.+': expected finite latents, got infinite or NaN ones by dtype float16: choose"
    with large, pytest.raises(ValueError, match=message):
        cache_latents(data_module("embedded:val"), layer, tmp_path / "float16", dtype="float16")
    broken = mock.patch.object(latents_command, "encode_clean", return_value=torch.full((4, 16, 8, 8), torch.nan))
    with broken, pytest.raises(ValueError, match=r"sample '.+': .* NaN ones by AutoencoderDC \(float32\): choose"):
        cache_latents(data_module("embedded:val"), layer, tmp_path / "float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device=cua"], "device: expected auto, cpu or a GPU that is there, got 'cua'"),
        (["--data.batch_sise=3"], "batch_sise"),
        (["--config=boring.yaml"], "config: expected a model with an encoder, got "),
    ],
)
def test_the_command_names_mistakes(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    boring = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    boring["model"] = {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}
    Path("boring.yaml").write_text(yaml.safe_dump(boring))
    config = [] if "boring" in options[0] else [f"--config={CONFIGS / 'quickstart.yaml'}"]
    assert main([str(tmp_path / "out"), *config, *options]) == 1
    assert message in capsys.readouterr().err


def test_other_data_is_refused_and_a_stop_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = f"--config={CONFIGS / 'quickstart.yaml'}"
    other = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    other["data"] = {"class_path": "lightning.pytorch.demos.boring_classes.BoringDataModule"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    assert main([str(tmp_path / "out"), f"--config={tmp_path / 'other.yaml'}"]) == 1
    assert "expected data of a WebDatasetDataModule, got BoringDataModule" in capsys.readouterr().err
    with mock.patch("datamodules.cache_latents.cache_latents", side_effect=KeyboardInterrupt):
        assert main([str(tmp_path), config]) == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err


def test_the_encoder_is_made_without_the_denoiser() -> None:
    with mock.patch("diffusers.UNet2DModel.__init__", side_effect=AssertionError):
        parts = parts_from_configs([CONFIGS / "quickstart.yaml"], ["--model.encoder.init_args.grow_mask_by=3"])
    assert parts.encoder.kernel.shape == (3, 3)
    StableDiffusionLayout("max").check(parts.encoder)
