"""Samples: every kind of file comes out upright, in RGB and in place; every bad one is named."""

import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from data_fixtures import encode, photo
from PIL import Image, ImageOps

from datamodules.samples import (
    SampleDecoder,
    centre_crop,
    crop_draws,
    largest_box,
    open_image,
    parse_caption,
    random_crop,
    to_rgb,
    upright_size,
)
from datamodules.shards import RawSample
from inpaint_module.randomness import Stream, key, uniform


def raw(position: int = 0, field: str = "png", image: Image.Image | bytes | None = None, **fields: bytes) -> RawSample:
    image = photo(1) if image is None else image
    data = image if isinstance(image, bytes) else encode(image)
    named = {name.replace("_", "."): value for name, value in fields.items()}
    return RawSample("s.tar", "k", {field: data, **named}, position)


def decoder(**options: object) -> SampleDecoder:
    return SampleDecoder(**{"image_size": (16, 16), "seed": 0, "augment": False, **options})


def mean_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().mean().item()


# Crops


def test_largest_box() -> None:
    assert largest_box(40, 20, 1.0) == (20, 20)
    assert largest_box(40, 20, 4.0) == (40, 10)


def test_centre_crop() -> None:
    assert centre_crop(40, 20, (10, 10)).box == (10, 0, 30, 20)


def test_random_crop_by_hand() -> None:
    crop = random_crop(100, 60, (20, 20), [0.5, 1.0, 0.0, 0.4], min_scale=0.5, flip=0.5)
    assert crop.box == (55, 0, 100, 45)
    assert crop.flip
    assert not random_crop(100, 60, (20, 20), [0.5, 1.0, 0.0, 0.4], min_scale=0.5, flip=0.4).flip


def test_random_crop_is_not_enlarged_unless_the_image_is_too_small() -> None:
    assert random_crop(100, 60, (54, 54), [0.0, 0.0, 0.0, 0.9], 0.5, 0.5).box == (0, 0, 54, 54)
    assert random_crop(100, 60, (90, 90), [0.0, 0.0, 0.0, 0.9], 0.5, 0.5).box == (0, 0, 60, 60)


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 8)])
def test_random_crops_stay_inside_and_keep_the_aspect(size: tuple[int, int]) -> None:
    for position in range(200):
        left, top, right, bottom = random_crop(47, 31, size, crop_draws(3, position), 0.2, 0.5).box
        assert 0 <= left < right <= 47
        assert 0 <= top < bottom <= 31
        assert (right - left) / (bottom - top) == pytest.approx(size[1] / size[0])


def test_draws_are_those_of_the_position() -> None:
    positions = torch.tensor([0, 63, 64, 10**12])
    place = uniform(key(9, positions, Stream.CROP), 3).tolist()
    flip = uniform(key(9, positions, Stream.FLIP), 1).tolist()
    assert [crop_draws(9, int(p)) for p in positions] == [a + b for a, b in zip(place, flip, strict=True)]


# Modes


def test_sixteen_bit_grey_is_scaled() -> None:
    grey = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    image = open_image(encode(Image.fromarray(grey)), 100)
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_modes_without_alpha(mode: str) -> None:
    image = photo(2).convert(mode)
    assert np.array_equal(to_rgb(image), image.convert("RGB"))


def test_cmyk_jpeg() -> None:
    image = open_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), 100)
    assert np.asarray(to_rgb(image))[0, 0] == pytest.approx([255, 0, 0], abs=3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_the_background(mode: str) -> None:
    image = Image.new(mode, (2, 1), 0)
    assert np.asarray(to_rgb(image, (10, 20, 30)))[0, 0].tolist() == [10, 20, 30]
    assert np.asarray(to_rgb(image))[0, 0].tolist() == [255, 255, 255]


def test_palette_and_grey_transparency() -> None:
    for mode in ("P", "L"):
        data = encode(Image.new(mode, (2, 2), 0), transparency=0)
        assert np.asarray(to_rgb(open_image(data, 100), (1, 2, 3)))[0, 0].tolist() == [1, 2, 3]


def test_animated_gives_the_first_frame() -> None:
    red, blue = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    for kind in ("PNG", "WEBP"):
        data = encode(red, kind, save_all=True, append_images=[blue], lossless=True)
        assert decoder()(raw(image=data))["image"][:, 0, 0].tolist() == [255, 0, 0]


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
    crop = random_crop(48, 40, (16, 16), crop_draws(0, 5), 0.5, 0.5)
    expected = image.resize((16, 16), Image.Resampling.BICUBIC, box=crop.box, reducing_gap=2.0)
    expected = ImageOps.mirror(expected) if crop.flip else expected
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), np.asarray(expected))
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
        data = encode(Image.new("L", (20, 20), level))
        assert decoder()(raw(mask_png=data))["mask"].all().item() is masked
        assert (
            decoder()(raw(mask_webp=encode(Image.new("L", (20, 20), level * 2 - 128), "WEBP")))["mask"].any() == masked
        )


def test_small_images() -> None:
    assert decoder(image_size=(64, 64))(raw())["image"].shape == (3, 64, 64)
    message = r"s\.tar: sample 'k': expected an image of at least 64 x 32 pixels \(upscale: false\), got 48 x 40"
    with pytest.raises(ValueError, match=message):
        decoder(image_size=(32, 64), upscale=False)(raw())


# Captions


def test_captions() -> None:
    assert parse_caption({"txt": " été\n".encode()}, 9) == "été"
    assert parse_caption({"json": b'{"caption": "a"}'}, 9) == "a"
    assert parse_caption({"txt": b"t", "json": b'{"caption": "a"}'}, 9) == "t"
    assert parse_caption({"json": b'{"caption": null}'}, 9) == parse_caption({}, 9) == ""


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"txt": b"\xff"}, "can't decode byte 0xff"),
        ({"txt": b"x" * 21}, "expected a caption of at most 20 bytes, got 21"),
        ({"json": b'{"caption": 3}'}, "expected a text as caption in json, got int"),
        ({"json": b"{"}, "Expecting property name"),
        ({"json": b"[]"}, "expected an object in json, got list"),
    ],
)
def test_bad_captions_are_named(fields: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=rf"s\.tar: sample 'k': .*{message}"):
        decoder(max_caption_bytes=20)(raw(**fields))


# Bad images


def bomb() -> bytes:
    """A PNG whose header announces 20000 x 20000 pixels and that holds none."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
        (encode(photo(1), "GIF"), "cannot identify"),
        (encode(photo(1))[:200], "."),
        (encode(photo(1, 200, 200), "JPEG")[:1500], "truncated"),
        (bomb(), "."),
    ],
)
def test_bad_images_are_named(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"s\.tar: sample 'k': .*{message}"):
        decoder()(raw(image=data))


def test_too_many_pixels_by_the_header() -> None:
    with pytest.raises(ValueError, match=r"expected 1 to 1919 pixels, got 48 x 40"):
        decoder(max_pixels=1919)(raw())


def test_bad_mask_is_named() -> None:
    with pytest.raises(ValueError, match=r"s\.tar: sample 'k': cannot identify"):
        decoder()(raw(mask_png=b"x"))


def outcome(data: bytes) -> str:
    """The shape of the decoded image, or the message of its refusal."""
    try:
        return str(tuple(decoder()(raw(image=data))["image"].shape))
    except ValueError as error:
        return str(error)


def test_mutated_files_never_give_another_error() -> None:
    generator = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP"):
        clean = encode(photo(1), kind)
        for _ in range(40):
            data = bytearray(clean)
            for at in generator.integers(0, len(data), 6):
                data[at] = generator.integers(0, 256)
            assert outcome(bytes(data)).startswith(("(3, 16, 16)", "s.tar: sample 'k': "))
