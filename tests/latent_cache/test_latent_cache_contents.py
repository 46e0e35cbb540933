"""What a latent cache holds, and how it is written: what training would make, to the same bytes after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from data_fixtures import encode, photo, write_tar
from latent_caches import CONFIGS, COUNT, SIDE, SMALL, batches, data_module, encoder, tags
from quiet_trainer import QUIET

from datamodules import FileMask
from datamodules import cache_latents as latents_command
from datamodules.cache_latents import cache_latents, main, parts_from_configs
from datamodules.decode.fields import DTYPES, pack_latents, read_header, read_latents
from datamodules.shards.manifest import MANIFEST
from datamodules.shards.shard_specs import open_shards
from datamodules.shards.tar_index import LATENTS_FIELD
from inpaint_module import load_vae

pytestmark = QUIET


# The format


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_latents_come_back_as_they_are(dtype: str) -> None:
    latents = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    data = pack_latents(latents, vae_sha256="ab" * 32, image_size=(16, 24))
    tag = read_header(data)[0]
    assert tag == tags(dtype=dtype)
    assert read_latents({LATENTS_FIELD: data}, tag).equal(latents)
    assert str(tag) == f"{dtype} (4, 2, 3) of 16 x 24 pixels by VAE abababababababab..."


@pytest.mark.parametrize("data", [b"", b"\x02\0\0\0\0\0\0\0[]", b"\xff" * 9, b"\x02\0\0\0\0\0\0\0{}"])
def test_another_file_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected latents.safetensors as datamodules.cache_latents writes it, got b"):
        read_header(data)[0]


@pytest.mark.parametrize("size", [[-1, 5], [2**40, 5], [1.5, 5], [5], "ab", [True, 5], [1e400, 5]])
@pytest.mark.parametrize("name", ["original_size", "crop", "image_size"])
def test_sizes_that_are_none_are_refused(name: str, size: Any) -> None:
    sizes = {"original_size": (90, 80), "crop": (0, 0), name: size}
    data = pack_latents(torch.zeros(4, 2, 3), vae_sha256="ab" * 32, image_size=(16, 24), sizes=sizes)
    with pytest.raises(ValueError, match=rf"expected latents.safetensors as .* its metadata: ({name}|expected JSON)"):
        read_header(data)[0]


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
            full, short = (
                read_latents({LATENTS_FIELD: a}, read_header(a)[0]),
                read_latents({LATENTS_FIELD: b}, read_header(b)[0]),
            )
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
    options: dict[str, Any] = {"label_key": "label", "share": 0.5, "batch_size": 6}
    data = data_module(masked_shards(tmp_path / "raw"), sources=[FileMask(inverted=True)], **options)
    cache_latents(data, encoder(), tmp_path / "cache")
    shards, source = open_shards(str(tmp_path / "cache")), data.train_set
    data.train_decoder.masks.share = 1.0
    for number in range(6):
        direct = data.train_decoder(source.read(number)._replace(position=number))
        cached = data_module(tmp_path / "cache", **options | {"share": 1.0})
        assert cached.latents is not None
        stored = cached.train_decoder.for_cache(cached.latents)(shards.read(number)._replace(position=number))
        assert ("mask" in stored) == ("mask" in direct) == (number % 2 == 0)
        assert stored["label"] == direct["label"] == number
        if "mask" in stored:
            assert stored["mask"].equal(direct["mask"])
    half = data_module(tmp_path / "cache", **options)
    shown = torch.cat([batch["mask"] for batch in batches(half, 8)])
    painted = torch.cat([batch["mask"] for batch in batches(data_module(tmp_path / "raw", sources=[]), 12)])
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
    assert main([out, config, *options, "--data.loading.max_bad_share=0"]) == 1
    assert "sample 'bad'" in capsys.readouterr().err
    assert main([out, config, *options, "--data.loading.max_bad_share=0.5"]) == 1
    assert "data was {" in capsys.readouterr().err
    out += "2"
    assert main([out, config, *options, "--data.loading.max_bad_share=0.5"]) == 0
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

    encode_row = latents_command._encode_row
    with mock.patch.object(latents_command, "_encode_row", dying), pytest.raises(OSError, match="killed"):
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
