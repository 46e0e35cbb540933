"""Samples: every kind of file comes out upright, in RGB and in place; every bad one is named."""

import io
import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from data_fixtures import encode, exif_turned, photo, sample_decoder
from PIL import Image, ImageOps

from datamodules.decode import reading
from datamodules.decode.augmentations import crop_numbers, random_crop
from datamodules.decode.coco_masks import CocoMask
from datamodules.decode.mask_sources import AlphaMask, FileMask, LabelMap
from datamodules.decode.reading import crop_mask, open_image, upright_size
from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.shards.shard_set import RawSample
from inpaint_module.randomness import Stream, key, uniform


def raw(position: int = 0, field: str = "png", image: Image.Image | bytes | None = None, **fields: bytes) -> RawSample:
    image = photo(1) if image is None else image
    data = image if isinstance(image, bytes) else encode(image)
    named = {name.replace("_", "."): value for name, value in fields.items()}
    return RawSample("s.tar", "k", {field: data, **named}, position)


def decoder(**options: object) -> SampleDecoder:
    return sample_decoder(**options)


def mean_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().mean().item()


def test_animated_gives_the_first_frame() -> None:
    red, blue = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    for kind in ("PNG", "WEBP"):
        data = encode(red, kind, save_all=True, append_images=[blue], lossless=True)
        sample = decoder()(raw(image=data))
        assert sample["image"][:, 0, 0].tolist() == [255, 0, 0]
        assert sample["notes"] == [("animated", "k")]
    assert "notes" not in decoder()(raw())


# Geometry


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(1, 48, 24), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(open_image(data, 10**6).fp))
    assert upright_size(open_image(data, 10**6)) == upright.size
    sample = decoder(image_size=(upright.height, upright.width))(raw(image=data))
    assert sample["image"].permute(1, 2, 0).numpy().tolist() == np.asarray(upright).tolist()


def test_jpeg_shortcut_keeps_the_picture() -> None:
    """DCT scaling (8-fold reduction here) against the full decode: under one grey level apart."""
    picture = photo(1, 16, 16).resize((512, 384), Image.Resampling.BICUBIC)
    jpeg = encode(picture, "JPEG", quality=95)
    short = decoder(image_size=(48, 48))(raw(image=jpeg))["image"]
    full = decoder(image_size=(48, 48))(raw(image=encode(Image.open(open_image(jpeg, 10**6).fp))))["image"]
    assert mean_difference(short, full) < 1.0


def test_train_sample_is_the_crop() -> None:
    image = photo(1, 48, 40)
    sample = decoder(augment=True)(raw(5, image=image))
    crop = random_crop(48, 40, (16, 16), crop_numbers(0, 5), 0.5, 0.5)
    expected = image.crop(crop.box).resize((16, 16), Image.Resampling.BICUBIC)
    expected = np.asarray(ImageOps.mirror(expected) if crop.flip else expected).astype(int)
    assert abs(sample["image"].permute(1, 2, 0).numpy() - expected).max() <= 1
    assert (sample["position"], sample["__key__"], sample["caption"]) == (5, "k", "")
    assert sample["image"].shape == (3, 16, 16)
    assert sample["image"].dtype == torch.uint8


def test_crops_differ_by_position_and_seed_only() -> None:
    images = {(seed, p): decoder(augment=True, seed=seed)(raw(p))["image"] for seed in (0, 1) for p in (0, 1)}
    assert len({image.numpy().tobytes() for image in images.values()}) == 4
    again = pickle.loads(pickle.dumps(decoder(augment=True)))(raw(1))["image"]
    assert again.equal(images[0, 1])


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("position", range(4))
def test_own_mask_follows_crop_and_flip(position: int, factor: int) -> None:
    """The mask is the picture's own bright half, drawn at another size: they must meet in every crop."""
    bright = np.zeros((80, 96), dtype=np.uint8)
    bright[:30, :50] = 255
    mask = Image.fromarray(bright).resize((96 * factor, 80 * factor), Image.Resampling.NEAREST)
    sample = decoder(augment=True, flip=0.5)(
        raw(position, image=Image.fromarray(bright).convert("RGB"), mask_png=encode(mask))
    )
    assert sample["mask"].shape == (1, 16, 16)
    assert sample["mask"].dtype == torch.bool
    assert (sample["mask"][0] != (sample["image"][0] >= 128)).sum() <= 8


def test_mask_threshold_is_above_one_half() -> None:
    for level, masked in ((127, False), (128, True)):
        data = encode(Image.new("L", (48, 40), level))
        assert decoder()(raw(mask_png=data))["mask"].all().item() is masked
        assert (
            decoder()(raw(mask_webp=encode(Image.new("L", (48, 40), level * 2 - 128), "WEBP")))["mask"].any() == masked
        )


@pytest.mark.parametrize("quality", [10, 30, 75])
def test_noisy_jpeg_masks_are_cut_at_one_half(quality: int) -> None:
    """.9 to .999 where white was, a little where black was: the clean mask but for the soft edge."""
    generator = np.random.default_rng(quality)
    clean = np.zeros((160, 160), dtype=np.uint8)
    clean[:, 80:] = 255
    noise = generator.integers(0, 26, clean.shape).astype(np.uint8)
    noisy = Image.fromarray(np.where(clean > 0, 255 - noise, noise))
    mask = decoder()(raw(image=photo(1, 160, 160), mask_jpg=encode(noisy, "JPEG", quality=quality)))["mask"]
    assert mask[0, :, 8:].all()
    assert not mask[0, :, :8].any()


# Which mask


def half(side: str) -> bytes:
    """A mask whose left or right half is white, or none of it."""
    mask = np.zeros((40, 48), dtype=np.uint8)
    mask[:, {"left": slice(0, 24), "right": slice(24, 48), "none": slice(0, 0)}[side]] = 255
    return encode(Image.fromarray(mask))


def sides(sample: dict[str, Any]) -> list[bool]:
    """Whether the left and the right quarter are masked."""
    return [sample["mask"][..., part].all().item() for part in (slice(0, 4), slice(12, 16))]


def labels() -> bytes:
    image = np.zeros((40, 48), dtype=np.uint8)
    image[:, 24:] = 5
    return encode(Image.fromarray(image))


def test_the_first_source_that_finds_a_mask_wins() -> None:
    both = raw(mask_png=half("left"), label_png=labels())
    assert sides(decoder(sources=[FileMask(), LabelMap([5])])(both)) == [True, False]
    assert sides(decoder(sources=[LabelMap([5]), FileMask()])(both)) == [False, True]
    assert sides(decoder(sources=[LabelMap([6]), FileMask()])(both)) == [True, False]
    assert "mask" not in decoder(sources=[])(both)


def test_alpha_masks_show_what_they_hide() -> None:
    image = photo(1).convert("RGBA")
    image.putalpha(Image.open(io.BytesIO(half("right"))))
    masked = decoder(sources=[AlphaMask()])(raw(image=image))
    painted = decoder(sources=[AlphaMask()], share=0.0)(raw(image=image))
    plain = decoder()(raw(image=image))
    assert sides(masked) == [True, False]
    assert masked["image"].equal(decoder()(raw(image=photo(1)))["image"])
    assert painted["image"].equal(masked["image"])
    assert (plain["image"][..., :4] == 255).all()


def test_own_masks_are_used_as_often_as_asked() -> None:
    fields = {"mask_png": half("left")}
    draws = uniform(key(0, torch.arange(60), Stream.OWN_MASK), 2)[:, 0]
    for share in (0.0, 0.4, 1.0):
        chosen = ["mask" in decoder(share=share)(raw(p, **fields)) for p in range(60)]
        assert chosen == (draws < torch.tensor(share)).tolist()


def test_objects_are_chosen_by_position() -> None:
    box = [[0, 0, 24, 0, 24, 40, 0, 40]], [[24, 0, 48, 0, 48, 40, 24, 40]]
    content = json.dumps({"annotations": [{"segmentation": one} for one in box]}).encode()
    found = [sides(decoder(sources=[CocoMask()])(raw(p, json=content))) for p in range(60)]
    assert 20 < found.count([True, False]) < 40
    assert found.count([True, False]) + found.count([False, True]) == 60
    assert found == [sides(decoder(sources=[CocoMask()])(raw(p, json=content))) for p in range(60)]


def test_empty_masks_are_allowed_or_not() -> None:
    empty = raw(mask_png=half("none"))
    assert not decoder()(empty)["mask"].any()
    assert "mask" not in decoder(allow_empty=False)(empty)
    assert decoder(allow_empty=False)(raw(mask_png=half("left")))["mask"].any()


# Masks of another sample


def test_only_the_mask_of_the_other_sample_is_used() -> None:
    other = raw(image=photo(2), mask_png=half("right"))
    receiver = raw(mask_png=half("left"))
    sample = decoder()(receiver._replace(removal=other))
    assert sides(sample) == [False, True]
    assert sample["image"].equal(decoder()(receiver)["image"])


def test_without_a_mask_the_other_changes_nothing() -> None:
    receiver = raw(mask_png=half("left"))
    for other in (raw(image=photo(2)), raw(image=photo(2), mask_png=half("none"))):
        assert sides(decoder()(receiver._replace(removal=other))) == [True, False]
    assert "mask" not in decoder()(raw()._replace(removal=raw(image=photo(2))))


def test_the_other_has_a_crop_of_its_own() -> None:
    """Of the other's size and shape, by draws of its own: not the receiver's."""
    column = np.zeros((30, 90), dtype=np.uint8)
    column[:, 40:50] = 255
    other = raw(image=photo(2, 90, 30), mask_png=encode(Image.fromarray(column)))
    for position in range(20):
        sample = decoder(augment=True)(raw(position)._replace(removal=other))
        draws = uniform(key(0, torch.tensor([position]), Stream.REMOVAL_MASK), 5)[0, :4].tolist()
        crop = random_crop(90, 30, (16, 16), draws, 0.5, 0.5)
        own = crop_mask(Image.fromarray(column), crop, (16, 16), (90, 30))
        assert sample["mask"].equal(own) if own.any() else "mask" not in sample
        assert sample["image"].equal(decoder(augment=True)(raw(position))["image"])


def test_a_small_other_sample_is_enough() -> None:
    other = raw(image=photo(2, 8, 8), mask_png=encode(Image.new("L", (8, 8), 255)))
    assert decoder(upscale=False)(raw()._replace(removal=other))["mask"].all()


def test_a_bad_other_sample_is_named() -> None:
    other = raw(mask_png=b"x")._replace(shard="d.tar", key="other")
    with pytest.raises(ValueError, match=r"s\.tar: sample 'k': mask of d\.tar: sample 'other': mask: cannot identify"):
        decoder()(raw()._replace(removal=other))


# Sizes


def test_small_images() -> None:
    sample = decoder(image_size=(64, 64))(raw())
    assert sample["image"].shape == (3, 64, 64)
    assert sample["notes"] == [("upscaled", "k")]
    assert "notes" not in decoder(image_size=(40, 48))(raw())
    message = r"s\.tar: sample 'k': expected an image of at least 64 x 32 pixels \(upscale: false\), got 48 x 40"
    with pytest.raises(ValueError, match=message):
        decoder(image_size=(32, 64), upscale=False)(raw())


def test_a_sample_may_ask_for_another_size() -> None:
    """Image, own and lent mask have it; crop and mask are those of a decoder of that size."""
    fields = {"mask_png": half("left")}
    of_that_size = decoder(augment=True, image_size=(24, 12))
    for other in (None, raw(image=photo(2), mask_png=half("right"))):
        for position in range(4):
            sample = raw(position, **fields)._replace(removal=other)
            given = decoder(augment=True)(sample._replace(size=(24, 12)))
            expected = of_that_size(sample)
            assert given["image"].shape == (3, 24, 12)
            assert given["image"].equal(expected["image"])
            assert given["mask"].equal(expected["mask"])
    with pytest.raises(ValueError, match="expected an image of at least 64 x 20 pixels"):
        decoder(upscale=False)(raw()._replace(size=(20, 64)))


def test_bad_mask_is_named() -> None:
    with pytest.raises(ValueError, match=r"s\.tar: sample 'k': mask: cannot identify"):
        decoder()(raw(mask_png=b"x"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_opened_once_and_its_rotation_read_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    opened, turn = Image.open, reading.read_turn
    monkeypatch.setattr(Image, "open", lambda *args, **options: calls.append("open") or opened(*args, **options))
    monkeypatch.setattr(reading, "read_turn", lambda image: calls.append("turn") or turn(image))
    data = encode(photo(1, 480, 400), kind, exif=exif_turned())
    for position in range(4):  # crops small enough that JPEGs are cut below them
        decoder(augment=True, min_scale=0.1)(raw(position, image=data))
    assert calls == ["open", "turn"] * 4
