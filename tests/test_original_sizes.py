"""What a batch says of the photos behind its images, and Stable Diffusion XL's time ids: worked out by hand, and
against the steps of diffusers' `train_text_to_image_sdxl.py` (resize, mirror, crop)."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_folders as tiny
import torch
from data_fixtures import Halves, encode, exif_turned, in_parts, photo, sample_decoder
from latent_caches import encoder
from PIL import Image, ImageOps
from tiny_models import ClassConditioning, tiny_batch, tiny_denoiser, tiny_module
from torch import Tensor

from datamodules import LoadingOptions
from datamodules import cache_latents as latents_command
from datamodules.cache_latents import cache_latents
from datamodules.decode.fields import pack_latents, read_header
from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.make_shards import make_shards
from datamodules.shards.shard_set import RawSample
from datamodules.shards.tar_index import LATENTS_FIELD
from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.base_models import FrozenTextEncoder, StableDiffusionXLText
from inpaint_module.batch import SIZE_FIELDS, Batch
from inpaint_module.encoder import InpaintEncoder
from inpaint_module.pixels import resized_sizes


def ramp(width: int, height: int) -> Image.Image:
    """Red is the column, green the row."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def raw(image: Image.Image, position: int = 0, kind: str = "PNG", **options: Any) -> RawSample:
    return RawSample("s.tar", "k", {"png": encode(image, kind, **options)}, position)


def decoder(**options: Any) -> SampleDecoder:
    return sample_decoder(**{"image_size": (64, 64), "augment": True, **options})


@pytest.mark.parametrize("flip", [0.0, 1.0], ids=["plain", "mirrored"])
def test_a_crop_of_a_photo_of_the_targets_height(flip: float) -> None:
    """Nothing is resized: the first pixel tells the column that it was, and mirrored it was counted from the right."""
    places = set()
    for position in range(20):
        sample = decoder(flip=flip)(raw(ramp(200, 64), position))
        column = int(sample["image"][0, 0, 0])
        assert sample["original_size"] == (64, 200)
        assert sample["crop"] == (0, 199 - column if flip else column)
        places.add(sample["crop"])
    assert len(places) > 10


@pytest.mark.parametrize("flip", [0.0, 1.0], ids=["plain", "mirrored"])
@pytest.mark.parametrize("turned", [False, True], ids=["upright", "turned by EXIF"])
@pytest.mark.parametrize("size", [(300, 200), (90, 200), (40, 30)], ids=["wide", "tall", "enlarged"])
def test_the_crop_is_that_of_the_script(size: tuple[int, int], turned: bool, flip: float) -> None:
    picture = photo(1, 12, 9).resize(size, Image.Resampling.BICUBIC)
    options = {"exif": exif_turned()} if turned else {}
    upright = picture.rotate(-90, expand=True) if turned else picture

    def where(place: int) -> tuple[int, int]:
        """Left and top: a crop of the short side's length moves along the long one."""
        return (place, 0) if upright.width > upright.height else (0, place)

    for position in range(5):
        sample = decoder(flip=flip, min_scale=1.0)(raw(picture, position, **options))
        scale = 64 / min(upright.size)
        resized = upright.resize([round(side * scale) for side in upright.size], Image.Resampling.BICUBIC)
        resized = ImageOps.mirror(resized) if flip else resized
        places = range(max(resized.size) - 63)
        theirs = [np.asarray(resized.crop((*place, place[0] + 64, place[1] + 64))) for place in map(where, places)]
        apart = [abs(sample["image"].permute(1, 2, 0).numpy() - each.astype(float)).mean() for each in theirs]
        top, left = sample["crop"]
        assert sample["original_size"] == (upright.height, upright.width)
        assert (left, top) == where(max(top, left))
        assert abs(max(top, left) - int(np.argmin(apart))) <= 1
        assert min(apart) < 3


def test_a_smaller_crop_counts_in_its_own_scale() -> None:
    """The first pixel tells the place in the photo, and the slope of the ramp the scale."""
    seen = set()
    for position in range(20):
        sample = decoder(flip=0.0, min_scale=0.0)(raw(ramp(256, 128), position))
        (top, left), image = sample["crop"], sample["image"].float()
        scale = (image[0, 0, 61] - image[0, 0, 2]) / 59  # columns of the photo per column of the image
        assert top * scale == pytest.approx(float(image[1, 0, 0]), abs=4)
        assert left * scale == pytest.approx(float(image[0, 0, 0]), abs=4)
        seen.add((top, left))
    assert len(seen) > 10


def test_an_enlarged_photo_by_hand() -> None:
    """12 x 8 pixels to 64 x 64: eightfold, so that the crop lies at a multiple of 8 between 0 and 32."""
    lefts = set()
    for position in range(40):
        sample = decoder(flip=0.0)(raw(photo(1, 12, 8), position))
        assert sample["original_size"] == (8, 12)
        assert sample["crop"][0] == 0
        lefts.add(sample["crop"][1])
    assert lefts == {0, 8, 16, 24, 32}


def test_a_removal_mask_changes_no_size() -> None:
    other = raw(photo(2, 90, 30))._replace(
        fields={**raw(photo(2)).fields, "mask.png": encode(Image.new("L", (24, 20)))}
    )
    plain = decoder()(raw(photo(1, 200, 100)))
    lent = decoder()(raw(photo(1, 200, 100))._replace(removal=other))
    assert all(lent[name] == plain[name] for name in ("original_size", "crop"))


def test_evaluation_says_nothing() -> None:
    assert not set(decoder(augment=False)(raw(photo(1)))) & set(SIZE_FIELDS)


# Batches


def shards(folder: Path) -> Path:
    """Six photos, wide and tall and small, whose index has their sizes."""
    (folder / "photos").mkdir(parents=True)
    for n, size in enumerate([(200, 100), (100, 200), (96, 96), (300, 100), (40, 30), (100, 130)]):
        photo(n, *size).save(folder / "photos" / f"p{n}.png")
    make_shards(folder / "photos", folder / "shards")
    return folder / "shards"


def data_module(folder: Path, **options: Any) -> WebDatasetDataModule:
    chosen = {"batch_size": 2, "image_size": 64, "mask_generator": Halves(), **options}
    return WebDatasetDataModule(str(folder), val_shards=str(folder), **in_parts(**chosen))


def batches(data: WebDatasetDataModule, count: int) -> list[Any]:
    return list(islice(data.train_dataloader(), count))


def test_batches_say_what_was_cut(tmp_path: Path) -> None:
    data = data_module(shards(tmp_path))
    for batch in batches(data, 3):
        assert all(batch[name].shape == (2, 2) and batch[name].dtype == torch.int64 for name in SIZE_FIELDS)
        assert batch["target_size"].tolist() == [[64, 64]] * 2
        for row, name in enumerate(batch["__key__"]):
            expected = {"p0": [100, 200], "p1": [200, 100], "p4": [30, 40]}.get(name)
            assert expected in (None, batch["original_size"][row].tolist())
    assert not set(next(iter(data.val_dataloader()))) & set(SIZE_FIELDS)


def test_buckets_have_their_own_target(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    seen = set()
    for batch in batches(data_module(folder, bucket_step=16), 12):
        height, width = batch["image"].shape[-2:]
        assert batch["target_size"].tolist() == [[height, width]] * 2
        seen.add((height, width))
    assert len(seen) > 1


def test_a_cache_keeps_what_was_cut(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    cache_latents(data_module(folder), encoder(), tmp_path / "cache", crops=2)
    stored = {
        name: [batch[field][row].tolist() for field in SIZE_FIELDS]
        for batch in batches(data_module(tmp_path / "cache"), 6)
        for row, name in enumerate(batch["__key__"])
    }
    plain = data_module(folder)
    for position in range(12):
        sample = plain.train_decoder(plain.train_set.read(position % 6)._replace(position=position))
        expected = [list(sample["original_size"]), list(sample["crop"]), [64, 64]]
        assert stored[f"{sample['__key__']}-{position}"] == expected


def old_cache(folder: Path, source: Path) -> Path:
    """As the version before wrote it, whose files say nothing of sizes."""

    def pack(latents: Tensor, *, sizes: Any, **options: Any) -> bytes:
        return pack_latents(latents, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents_command, "pack_latents", pack)
        cache_latents(data_module(source), encoder(), folder)
    return folder


def test_old_caches_train_alone_and_beside_new_ones(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    old = old_cache(tmp_path / "old", folder)
    cache_latents(data_module(folder), encoder(), tmp_path / "new")
    for sources in ([str(old)], [str(old), str(tmp_path / "new")], [str(tmp_path / "new"), str(old)]):
        data = WebDatasetDataModule(
            sources, batch_size=4, image_size=64, mask_generator=Halves(), loading=LoadingOptions(max_bad_share=0)
        )
        for batch in batches(data, 3):
            assert batch["latents"].shape == (4, 16, 8, 8)
            assert not set(batch) & set(SIZE_FIELDS)


def test_a_cached_sample_without_sizes_among_others_is_refused() -> None:
    latents, of = torch.zeros(4, 8, 8), {"vae_sha256": "ab" * 32, "image_size": (64, 64)}
    whole = pack_latents(latents, **of, sizes={"original_size": (90, 80), "crop": (1, 2)})
    cached = decoder().for_cache(read_header(whole)[0])
    sample = raw(photo(1, 64, 64))
    given = cached(sample._replace(fields={**sample.fields, LATENTS_FIELD: whole}))
    assert (given["original_size"], given["crop"]) == ((90, 80), (1, 2))
    with pytest.raises(ValueError, match=r"with original sizes and crops, got float32 .* pixels by VAE ababab\S+$"):
        cached(sample._replace(fields={**sample.fields, LATENTS_FIELD: pack_latents(latents, **of)}))


# Time ids


def conditioning() -> StableDiffusionXLText:
    pipeline = tiny.stable_diffusion_xl()
    return StableDiffusionXLText(
        FrozenTextEncoder(pipeline.tokenizer, pipeline.text_encoder),
        FrozenTextEncoder(pipeline.tokenizer_2, pipeline.text_encoder_2),
    )


def of_sizes(height: int, width: int, **sizes: tuple[int, int]) -> Batch:
    fields: Any = {name: torch.tensor([size, size]) for name, size in sizes.items()}
    return {"image": torch.zeros(2, 3, height, width, dtype=torch.uint8), "position": torch.arange(2), **fields}


def test_time_ids_are_what_was_cut() -> None:
    sizes = {"original_size": (600, 800), "crop": (5, 7)}
    told = conditioning().time_ids(of_sizes(64, 48, **sizes, target_size=(64, 48)))
    assert told.tolist() == [[600, 800, 5, 7, 64, 48]] * 2
    assert conditioning().time_ids(of_sizes(64, 48)).tolist() == [[64, 48, 0, 0, 64, 48]] * 2
    with pytest.raises(ValueError, match=r"batch\['target_size'\] must be \(2, 2\), got \(2,\)"):
        conditioning().time_ids({**of_sizes(64, 48), "target_size": torch.zeros(2)})


def test_what_the_encoder_cuts_off_counts_too() -> None:
    """67 x 53 pixels at (10, 20): the encoder takes 64 x 48 of them, from (1, 2) on."""
    sizes = {"original_size": (600, 800), "crop": (10, 20), "target_size": (67, 53)}
    assert conditioning().time_ids(of_sizes(67, 53, **sizes)).tolist() == [[600, 800, 11, 22, 64, 48]] * 2


def test_images_that_the_encoder_resizes_are_told_in_their_new_scale() -> None:
    """Of 67 x 53 pixels `sizing: diffusers` makes 64 x 48: nothing is cut off, and (10, 20) becomes (9.6, 18.1)."""
    sizes = {"original_size": (600, 800), "crop": (10, 20), "target_size": (67, 53)}
    told, module = Recording(), tiny_module(denoiser=tiny_denoiser(num_class_embeds=2), conditioning=Recording())
    module.encoder = InpaintEncoder(module.encoder.vae, sizing="diffusers", normalize=True)
    module.conditioning = told
    module.loss(tiny_batch(height=67, width=53) | of_sizes(67, 53, **sizes))
    assert conditioning().time_ids(told.seen[0]).tolist() == [[600, 800, 10, 18, 64, 48]] * 2
    assert resized_sizes(of_sizes(67, 53), 8).keys() == of_sizes(67, 53).keys()


def test_an_old_cache_is_said() -> None:
    batch: Batch = {**of_sizes(64, 48), "latents": torch.zeros(2, 4, 8, 6)}
    with pytest.warns(UserWarning, match=r"cached latents with the original_size .* without.*make the cache again"):
        told = conditioning().time_ids(batch)
    assert told.tolist() == [[64, 48, 0, 0, 64, 48]] * 2


class Recording(ClassConditioning):
    """Keeps the batches that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Batch] = []

    def embed(self, batch: Any, dropped: Tensor | None) -> dict[str, Any]:
        self.seen.append(batch)
        return super().embed(batch, dropped)


def test_training_tells_sizes_and_inpainting_does_not() -> None:
    told = Recording()
    module = tiny_module(denoiser=tiny_denoiser(num_class_embeds=2), conditioning=told, guidance_scale=2.0)
    batch = tiny_batch() | of_sizes(32, 48, original_size=(60, 80), crop=(1, 2), target_size=(32, 48))
    before = copy.copy(batch)
    module.loss(batch)
    module.inpaint(batch)
    assert [sorted(set(each) & set(SIZE_FIELDS)) for each in told.seen] == [sorted(SIZE_FIELDS), [], []]
    assert batch.keys() == before.keys()
