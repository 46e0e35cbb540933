"""Data and VAEs with one fault each, made from the embedded photos, for the doctor to find."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from data_fixtures import encode, write_tar
from diffusers import AutoencoderDC
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from datamodules.decode.reading import image_bytes
from datamodules.shards.manifest import write_manifest
from datamodules.shards.shard_specs import open_shards
from datamodules.webdataset_datamodule import WebDatasetDataModule

VAE = Path(__file__).parents[1] / "inpaint_module" / "assets" / "vae"
Fields = dict[str, bytes]
Plant = Callable[[int, Fields], Fields]


def shards(folder: Path, plant: Plant) -> Path:
    """A shard of the sixteen embedded validation photos, each changed by `plant(number, fields)`."""
    folder.mkdir(parents=True)
    photos, members = open_shards("embedded:val"), []
    for number in range(len(photos)):
        fields = {"jpg": square(image_bytes(photos.read(number).fields)), "txt": b"photo %d" % number}
        members += [(f"p{number:02d}.{name}", data) for name, data in plant(number, fields).items()]
    write_tar(folder / "000.tar", members)
    write_manifest(folder)
    return folder


def square(data: bytes) -> bytes:
    """The photo's middle, of the shape of the masks here."""
    image = Image.open(io.BytesIO(data))
    return encode(ImageOps.fit(image, (min(image.size),) * 2), "JPEG", quality=95)


def disk(radius: int = 30) -> Image.Image:
    """A white disk in the middle of 128 x 128 black pixels."""
    mask = Image.new("L", (128, 128))
    ImageDraw.Draw(mask).ellipse((64 - radius, 64 - radius, 64 + radius, 64 + radius), fill=255)
    return mask


def no_fault(number: int, fields: Fields) -> Fields:
    """A good mask."""
    return fields | {"mask.png": encode(disk())}


def inverted_masks(number: int, fields: Fields) -> Fields:
    """White is what to keep, around a small object."""
    return fields | {"mask.png": encode(ImageOps.invert(disk(10)))}


def wide_inverted_masks(number: int, fields: Fields) -> Fields:
    """As before, around a large object, so that coverage alone tells nothing."""
    return fields | {"mask.png": encode(ImageOps.invert(disk(30)))}


def empty_masks(number: int, fields: Fields) -> Fields:
    """No hole."""
    return fields | {"mask.png": encode(disk(0).point(lambda value: 0))}


def jpeg_masks(number: int, fields: Fields) -> Fields:
    """Noise along the edges."""
    return fields | {"mask.jpg": encode(disk(), "JPEG", quality=50)}


def soft_masks(number: int, fields: Fields) -> Fields:
    """Feathered by a photo editor."""
    return fields | {"mask.png": encode(disk().filter(ImageFilter.GaussianBlur(12)))}


def black_images(number: int, fields: Fields) -> Fields:
    """What a failed reader leaves behind, in every third sample."""
    return fields | ({"jpg": encode(Image.new("RGB", (128, 128)), "JPEG")} if number % 3 == 0 else {})


def duplicates(number: int, fields: Fields) -> Fields:
    """Every third photo is the same."""
    first = square(image_bytes(open_shards("embedded:val").read(0).fields))
    return fields | ({"jpg": first} if number % 3 == 0 else {})


class SignedPixels(WebDatasetDataModule):
    """A user's own module that normalizes to -1..1."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return batch | {"image": batch["image"].float() / 127.5 - 1}


class NoPositions(WebDatasetDataModule):
    """A user's own module without positions."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return {name: value for name, value in batch.items() if name != "position"}


class FlatMasks(WebDatasetDataModule):
    """A user's own module whose masks have no channel."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return batch | {"mask": batch["mask"][:, 0]}


def vae_of_another_scale(folder: Path) -> Path:
    """The embedded VAE, whose config tells another scale."""
    vae = AutoencoderDC.from_pretrained(VAE, low_cpu_mem_usage=False)
    vae.register_to_config(scaling_factor=0.18215)
    vae.save_pretrained(folder)
    return folder


def untrained_vae(folder: Path) -> Path:
    """The embedded VAE's architecture with random weights."""
    torch.manual_seed(0)
    AutoencoderDC.from_config(AutoencoderDC.load_config(VAE)).save_pretrained(folder)
    return folder


def loud_vae(folder: Path) -> Path:
    """The embedded VAE with activations of 100,000 and more."""
    vae = AutoencoderDC.from_pretrained(VAE, low_cpu_mem_usage=False)
    with torch.no_grad():
        vae.encoder.conv_in.conv.weight *= 30_000
        vae.encoder.conv_in.conv.bias *= 30_000
    vae.save_pretrained(folder)
    return folder
