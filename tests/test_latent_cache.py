"""A latent cache: holds what training would make, gives the same loss, and is refused where it does not fit."""

from __future__ import annotations

import json
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from data_fixtures import Halves, encode, photo, write_tar
from diffusers import DDIMScheduler
from tiny_models import tiny_batch, tiny_denoiser, tiny_module, tiny_vae

import train
from datamodules import FileMask
from datamodules.cache_latents import cache_latents, main, parts_from_configs
from datamodules.samples.latent_cache import DTYPES, pack_latents, read_latents, read_tag
from datamodules.shards.manifest import MANIFEST
from datamodules.shards.shard_specs import open_shards
from datamodules.shards.tar_index import LATENTS_FIELD
from datamodules.webdataset_datamodule import WebDatasetDataModule
from datamodules.writing import latent_samples
from inpaint_module import InpaintEncoder, load_vae
from inpaint_module.callbacks.run_record import MetricRow, read_metrics
from inpaint_module.clean_latents import LatentsTag, check_clean, encode_beside, encode_clean
from inpaint_module.layouts import StableDiffusionLayout
from inpaint_module.lightning_module import InpaintDiffusion

CONFIGS = Path(__file__).parents[1] / "configs"
SIDE = 64
COUNT = 16  # photos in embedded:val
SMALL = ["--data.train_shards=embedded:val", f"--data.image_size={SIDE}", "--data.batch_size=4"]
TRAIN = [
    "--trainer.accelerator=cpu",
    "--trainer.limit_train_batches=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.batch_size=2",
    "--data.val_batch_size=2",
    f"--data.image_size={SIDE}",
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),  # tiny steps need none
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning 2.6 on torch's newest pytree
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*not supported by the model summary.*"),
    pytest.mark.filterwarnings("ignore:.*available but not used.*"),  # the tests train on the CPU
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # a resume goes on there
]


@pytest.fixture(autouse=True)
def quiet_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 calls its old names


def data_module(shards: str | Path | list[str], **options: Any) -> WebDatasetDataModule:
    shards = shards if isinstance(shards, list) else str(shards)
    chosen = {"batch_size": 4, "image_size": SIDE, "mask_generator": Halves(), "min_scale": 0.6} | options
    return WebDatasetDataModule(shards, **chosen)


def batches(data: WebDatasetDataModule, count: int) -> list[dict[str, Any]]:
    """As training gets them."""
    return [data.on_after_batch_transfer(batch, 0) for batch in islice(data.train_dataloader(), count)]


def encoder(**options: Any) -> InpaintEncoder:
    return InpaintEncoder(load_vae(), normalize=True, **options)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two crops each of the embedded validation photos, by the embedded VAE, in shards of about nine samples."""
    folder = tmp_path_factory.mktemp("cache") / "latents"
    config = f"--config={CONFIGS / 'quickstart.yaml'}"
    assert main([str(folder), config, "--crops=2", "--shard-bytes=120000", "--device=cpu", *SMALL]) == 0
    return folder


def tags(**changes: Any) -> LatentsTag:
    return LatentsTag("ab" * 32, (16, 24), (4, 2, 3), "float32")._replace(**changes)


# The format


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_latents_come_back_as_they_are(dtype: str) -> None:
    latents = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    data = pack_latents(latents, vae_sha256="ab" * 32, image_size=(16, 24))
    tag = read_tag(data)
    assert tag == tags(dtype=dtype)
    assert read_latents({LATENTS_FIELD: data}, tag).equal(latents)
    assert str(tag) == f"{dtype} (4, 2, 3) of 16 x 24 pixels by VAE abababababababab..."


@pytest.mark.parametrize("data", [b"", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 9, b"\x02\0\0\0\0\0\0\0{}"])
def test_another_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected latents.safetensors as datamodules.cache_latents writes it, got b"):
        read_tag(data)


def test_a_sample_without_latents_or_with_others_is_refused() -> None:
    data = pack_latents(torch.zeros(4, 2, 3), vae_sha256="ab" * 32, image_size=(16, 24))
    with pytest.raises(ValueError, match=r"as the first sample of data.train_shards has it, got none"):
        read_latents({}, tags())
    with pytest.raises(ValueError, match=r"train_shards, float32 \(4, 2, 3\) of 8 x 24 .*, got float32 .* of 16 x 24"):
        read_latents({LATENTS_FIELD: data}, tags(image_size=(8, 24)))


# What the cache holds


def test_the_cache_holds_what_training_would_make(cache: Path) -> None:
    data, shards = data_module("embedded:val"), open_shards(str(cache))
    assert len(shards) == 2 * COUNT
    assert len(shards.shards) > 1
    source = open_shards("embedded:val")
    cached = data_module(cache)
    assert cached.latents is not None
    decode, vae = cached.train_decoder.for_cache(cached.latents), load_vae()
    for position in range(2 * COUNT):
        direct = data.train_decoder(source.read(position % COUNT)._replace(position=position))
        stored = decode(shards.read(position)._replace(position=7))
        assert stored["image"].equal(direct["image"])
        assert stored["caption"] == direct["caption"]
        assert stored["__key__"] == f"{direct['__key__']}-{position}"
        alone = vae.posterior(direct["image"][None] / 255).mean[0]
        torch.testing.assert_close(stored["latents"], alone, rtol=0, atol=1e-4)


def test_the_record_says_what_it_is(cache: Path) -> None:
    record = json.loads((cache / "latents.json").read_text())
    expected = {"crops": 2, "samples": 2 * COUNT, "dtype": "float32", "image_size": [SIDE, SIDE], "seed": 0}
    expected |= {"ratio": 8, "channels": 16, "vae_sha256": load_vae().fingerprint().hex()}
    expected |= {"dataset_fingerprint": open_shards("embedded:val").fingerprint}
    assert record.items() >= expected.items()
    assert record["data"]["min_scale"] == 0.6


def test_half_precision_is_half_the_size_and_nearly_the_same(cache: Path, tmp_path: Path) -> None:
    whole, data = open_shards(str(cache)), data_module("embedded:val")
    for dtype, tolerance in (("bfloat16", 2**-8), ("float16", 2**-11)):
        shards = cache_latents(data, encoder(), tmp_path / dtype, dtype=dtype).shards
        half = open_shards(str(tmp_path / dtype))
        assert len(half) == sum(shard.count for shard in shards) == COUNT
        for number in range(COUNT):
            a, b = (s.read(number).fields[LATENTS_FIELD] for s in (whole, half))
            full, short = read_latents({LATENTS_FIELD: a}, read_tag(a)), read_latents({LATENTS_FIELD: b}, read_tag(b))
            assert ((short.float() - full).abs() <= tolerance * full.abs() + 1e-6).all()
            assert len(b) < 0.6 * len(a)  # headers stay


def masked_shards(folder: Path) -> Path:
    """Six photos, of which the even ones have a mask in black, with class and caption."""
    folder.mkdir()
    members = []
    for number in range(6):
        members += [(f"a/p{number}.jpg", encode(photo(number, 90, 80), "JPEG"))]
        members += [(f"a/p{number}.cls", b"%d" % number), (f"a/p{number}.txt", f"photo {number}".encode())]
        if number % 2 == 0:
            mask = photo(3, 90, 80).convert("L").point(lambda value: 255 * (value > 90))
            members.append((f"a/p{number}.mask.png", encode(mask)))
    write_tar(folder / "0.tar", members)
    return folder


def test_masks_and_classes_are_kept_and_the_choice_of_masks_is_the_trainings(tmp_path: Path) -> None:
    options: dict[str, Any] = {"label_key": "label", "own_mask_probability": 0.5, "batch_size": 6}
    data = data_module(masked_shards(tmp_path / "raw"), mask_sources=[FileMask(inverted=True)], **options)
    cache_latents(data, encoder(), tmp_path / "cache")
    shards, source = open_shards(str(tmp_path / "cache")), data.train_set
    data.train_decoder.masks.probability = 1.0
    for number in range(6):
        direct = data.train_decoder(source.read(number)._replace(position=number))
        cached = data_module(tmp_path / "cache", **options | {"own_mask_probability": 1.0})
        assert cached.latents is not None
        stored = cached.train_decoder.for_cache(cached.latents)(shards.read(number)._replace(position=number))
        assert ("mask" in stored) == ("mask" in direct) == (number % 2 == 0)
        assert stored["label"] == direct["label"] == number
        if "mask" in stored:
            assert stored["mask"].equal(direct["mask"])
    half = data_module(tmp_path / "cache", **options)
    shown = torch.cat([batch["mask"] for batch in batches(half, 8)])
    painted = torch.cat([batch["mask"] for batch in batches(data_module(tmp_path / "raw", mask_sources=[]), 12)])
    differs = (shown != painted).flatten(1).any(dim=1)
    assert 6 < differs.sum() < 18  # 24 of 48 have a mask of their own, of which half is used


def test_masks_are_fresh_in_every_pass(cache: Path) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in batches(data_module(cache, batch_size=2 * COUNT), 3):
        for name, mask in zip(batch["__key__"], batch["mask"], strict=True):
            seen.setdefault(name, []).append(mask)
    assert {len(masks) for masks in seen.values()} == {3}
    assert sum(len({mask.numpy().tobytes() for mask in masks}) == 3 for masks in seen.values()) > COUNT


def test_a_bad_sample_is_replaced_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw").mkdir()
    photos = [(f"p{number}.png", encode(photo(number, 80, 80))) for number in range(5)]
    write_tar(tmp_path / "raw" / "0.tar", [*photos, ("bad.png", b"no picture")])
    out, config = str(tmp_path / "cache"), f"--config={CONFIGS / 'quickstart.yaml'}"
    options = [f"--data.train_shards={tmp_path / 'raw'}", f"--data.image_size={SIDE}", "--data.batch_size=6"]
    assert main([out, config, *options, "--data.max_bad_share=0"]) == 1
    assert "sample 'bad'" in capsys.readouterr().err
    assert main([out, config, *options, "--data.max_bad_share=0.5"]) == 1
    assert "data was {" in capsys.readouterr().err
    out += "2"
    assert main([out, config, *options, "--data.max_bad_share=0.5"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("6 samples, ")
    assert f"1 bad samples replaced, see {Path(out) / 'quarantine.jsonl'}" in shown.err


# A killed run


def test_a_broken_run_looks_unfinished_and_goes_on_to_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    parts = parts_from_configs([CONFIGS / "quickstart.yaml"], SMALL)
    options: dict[str, Any] = {"crops": 2, "shard_bytes": 120000, "settings": parts.settings}

    def dying(batch: dict[str, Any], vae_sha256: str, row: int) -> Any:
        if int(batch["position"][row]) == 21:
            raise OSError("killed")
        return encode_row(batch, vae_sha256, row)

    encode_row = latent_samples._encode_row
    with mock.patch.object(latent_samples, "_encode_row", dying), pytest.raises(OSError, match="killed"):
        cache_latents(parts.data, parts.encoder, tmp_path, **options)
    with pytest.raises(ValueError, match=r"no manifest.json and no \*.tar"):
        open_shards(str(tmp_path))
    with pytest.raises(ValueError, match="crops was 2, is 1"):
        cache_latents(parts.data, parts.encoder, tmp_path, **options | {"crops": 1})
    cache_latents(parts.data, parts.encoder, tmp_path, **options)
    for name in ("latents.json", MANIFEST):
        assert (tmp_path / name).read_text() == (cache / name).read_text()
    with pytest.raises(ValueError, match="expected a folder without shards, got one that has some"):
        cache_latents(parts.data, parts.encoder, tmp_path, **options)


# Training


@pytest.mark.parametrize("max_batch", [None, 4], ids=["one pass", "passes of 4"])
def test_the_loss_is_that_without_the_cache(max_batch: int | None, cache: Path) -> None:
    """To the bit if the VAE always gets 4 images; in a batch of another size its sums may round otherwise."""
    denoiser, scheduler = tiny_denoiser(in_channels=33, out_channels=16), DDIMScheduler(prediction_type="v_prediction")
    module = InpaintDiffusion(denoiser, encoder(max_batch=max_batch), StableDiffusionLayout("max"), scheduler)
    tolerance = 0.0 if max_batch else 1e-5
    for batch in batches(data_module(cache), 4):
        plain = {name: value for name, value in batch.items() if name != "latents"}
        expected, got = module.encode(plain), module.encode(batch)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
        assert module.loss(batch).item() == pytest.approx(module.loss(plain).item(), rel=tolerance / 10, abs=0)


@pytest.mark.cuda
def test_the_loss_on_a_gpu_is_that_without_the_cache() -> None:
    module, batch = tiny_module().cuda(), tiny_batch(3)
    plain = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
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
    callbacks = [saves, {"class_path": "inpaint_module.callbacks.run_record.RunRecord"}]
    Path("saves.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    configs = [f"--config={CONFIGS / name}" for name in ("quickstart.yaml", "latent_cache.yaml")]
    configs.append("--config=saves.yaml")
    with mock.patch.object(sys, "argv", ["train.py", "fit", *configs, *TRAIN, *options]):
        train.main()


def losses(run: Path) -> list[MetricRow]:
    return [row for row in read_metrics(run / "metrics.csv") if row.metric == "train/loss"]


def test_the_overlay_trains_resumes_and_refuses(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "latents").symlink_to(cache)
    for steps in (2, 4):
        with mock.patch("inpaint_module.lightning_module.encode_beside", wraps=encode_beside) as beside:
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


# Refusals


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


def test_mixed_sources_sizes_and_buckets_are_refused(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"one kind everywhere, or nowhere, got .*: float32 .*; .*: none"):
        data_module([str(cache), "embedded:train"]).train_dataloader()
    with pytest.raises(ValueError, match=r"data.image_size: expected \(64, 64\), as .* have, got \(128, 64\)"):
        data_module(cache, image_size=(128, 64)).train_dataloader()
    with pytest.raises(ValueError, match=r"data.bucket_step: expected null for shards with cached latents"):
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
        ({"bucket_step": 8}, {}, "data.bucket_step: expected null"),
        ({"source_weights": [1.0]}, {}, "data.source_weights: expected null; cache each source"),
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
    large = mock.patch.object(latent_samples, "encode_clean", return_value=torch.full((4, 16, 8, 8), 1e6))
    with large, pytest.raises(ValueError, match=r"dtype: expected one that holds .*, got torch.float16"):
        cache_latents(data_module("embedded:val"), layer, tmp_path, dtype="float16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device=cua"], "device: expected auto, cpu or a GPU that is there, got 'cua'"),
        (["--data.batch_sise=3"], "batch_sise"),
        ([f"--config={CONFIGS / 'autoencoder.yaml'}"], "config: expected a model with an encoder, got "),
    ],
)
def test_the_command_names_mistakes(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = [] if "autoencoder" in options[0] else [f"--config={CONFIGS / 'quickstart.yaml'}"]
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
