"""What diffusers' pipelines do before the denoiser and this package does otherwise by default, measured on photos.

    python -m tests.benchmarks.bench_serving                             # CPU; seconds
    python -m tests.benchmarks.bench_serving --vae some/model/vae        # on yours; a hub name also does

The pipelines' side is made by their own `VaeImageProcessor` and autoencoder. Distances of latents are in shares of the
standard deviation that the photos' latents have. What needs an AutoencoderKL (a variance, a shift) is measured on
random ones of its real sizes of latents, unless --vae has it; each row says which it was. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor, nn

from inpaint_module import InpaintEncoder, load_vae
from inpaint_module.masks import preset
from inpaint_module.randomness import Stream, key
from inpaint_module.vae import DiffusersVAE
from inpaint_module.weights import ASSETS
from tests.benchmarks import machine
from tests.benchmarks.markdown import table

CROP_PADDING = 32  # pixels of padding_mask_crop, as in its documentation
SD3 = {"scaling_factor": 1.5305, "shift_factor": 0.0609}  # of its VAE's config


def photos(side: int) -> list[Image.Image]:
    """The package's photos, their shorter side brought to `side`."""
    found = []
    for path in sorted((ASSETS / "photos").glob("*.jpg")):
        photo = Image.open(path).convert("RGB")
        scale = side / min(photo.size)
        found.append(photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS))
    return found


def bytes_of(photo: Image.Image) -> Tensor:
    """uint8 (1, 3, H, W)."""
    return torch.from_numpy(np.array(photo)).movedim(-1, 0)[None]


def pipeline_latents(encoder: InpaintEncoder, photo: Image.Image, height: int, width: int) -> Tensor:
    """The latents of a whole photo that a pipeline called with this height and width makes, in the denoiser's space."""
    pixels = VaeImageProcessor(vae_scale_factor=encoder.vae.ratio).preprocess(photo, height, width)
    return encoder.vae.normalize(encoder.vae.posterior(pixels / 2 + 0.5).mean)


def odd_sizes(encoder: InpaintEncoder, pictures: list[Image.Image]) -> float:
    """Mean distance of the latents of photos whose sides are no multiples of the ratio."""
    distances, ratio = [], encoder.vae.ratio
    for picture in pictures:
        height, width = (side // ratio * ratio - 3 for side in (picture.height, picture.width))
        odd = picture.crop((0, 0, width, height))
        theirs = pipeline_latents(encoder, odd, height // ratio * ratio, width // ratio * ratio)
        ours = encoder(bytes_of(odd), torch.zeros(height, width)).samples
        distances.append((ours - theirs).abs() / ours.std())
    return mean_of(distances)


def resized_masks(encoder: InpaintEncoder, side: int) -> float:
    """Share of the masked pixels that are told otherwise, for masks of twice the image's size."""
    masks = preset("lama-medium")(key(0, torch.arange(8), Stream.MASK), side * 2, side * 2)
    processor = VaeImageProcessor(
        vae_scale_factor=encoder.vae.ratio, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    as_pil = [Image.fromarray(mask[0].numpy().astype(np.uint8) * 255) for mask in masks]
    theirs = torch.cat([processor.preprocess(mask, side, side) for mask in as_pil]) > 0.5
    ours = encoder.fill_hole(torch.zeros(1, 3, side, side, dtype=torch.uint8), masks).noise_mask > 0.5
    return float((ours ^ theirs).sum() / theirs.sum())


def mask_of_one_half(encoder: InpaintEncoder, side: int) -> float:
    """Share of the pixels of a mask of 0.5 that are inpainted."""
    half = torch.full((side, side), 0.5)
    return float(encoder.fill_hole(torch.zeros(1, 3, side, side), half).noise_mask.mean())


def padding_mask_crop(side: int) -> float:
    """How much larger a pipeline shows a hole of a quarter of the side with `padding_mask_crop`, in its width."""
    mask = Image.new("L", (side, side))
    mask.paste(255, (side // 2, side // 2, side * 3 // 4, side * 3 // 4))
    left, _, right, _ = VaeImageProcessor.get_crop_region(mask, side, side, pad=CROP_PADDING * side // 512)
    return side / (right - left)


def posterior(encoder: InpaintEncoder, pictures: list[Image.Image]) -> float | None:
    """Mean distance of a sample from the mode; None where there is no variance."""
    distances, generator = [], torch.Generator().manual_seed(0)
    for picture in pictures:
        pixels = encoder.crop(bytes_of(picture).float() / 255)
        mean, std = encoder.vae.posterior(pixels)
        if std is None:
            return None
        drawn = mean + std * torch.randn(std.shape, generator=generator)
        distances.append((encoder.vae.normalize(drawn - mean) - encoder.vae.normalize(0 * mean)).abs())
        distances[-1] /= encoder.vae.normalize(mean).std()
    return mean_of(distances)


def bfloat16(module: nn.Module, encoder: InpaintEncoder, pictures: list[Image.Image]) -> float:
    """Mean distance of a bfloat16 VAE's latents from those in float32; it leaves the module in bfloat16."""
    whole = [bytes_of(picture) for picture in pictures]
    nothing = [torch.zeros(picture.shape[-2:]) for picture in whole]
    exact = [encoder(picture, mask).samples for picture, mask in zip(whole, nothing, strict=True)]
    rounded = InpaintEncoder(DiffusersVAE(nn.Module.to(module, torch.bfloat16)), 0, normalize=True)
    pairs = zip(whole, nothing, exact, strict=True)
    return mean_of([(rounded(image, mask).samples - each).abs() / each.std() for image, mask, each in pairs])


def mean_of(distances: list[Tensor]) -> float:
    """Of all values together."""
    return float(torch.cat([each.flatten() for each in distances]).mean())


def random_kl(channels: int = 4, **config: float) -> AutoencoderKL:
    """A small AutoencoderKL with random weights, whose posterior has a variance."""
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    widths = {"block_out_channels": (8,) * 4, "norm_num_groups": 4}
    return AutoencoderKL(**widths, **kinds, latent_channels=channels, **config).eval()


class Decoded(NamedTuple):
    """How far apart two decodes of the same latents are: means over all values.

    Attributes:
        latents: in the denoiser's space, where a trained model's have a standard deviation of about 1.
        pixels: in 0..1, as they come from the VAE.
        picture_std: standard deviation of the pixels that the VAE makes of them.
    """

    latents: float
    pixels: float
    picture_std: float


def forgotten_shift(encoder: InpaintEncoder, pictures: list[Image.Image], shift: float, scale: float) -> Decoded:
    """`StableDiffusion3InpaintPipeline`'s decode, latents / scale, beside the VAE's own, latents / scale + shift.

    A VAE without a shift is decoded off by the same share of its latents' standard deviation.
    """
    apart, spread, latents = [], [], shift * scale
    for picture in pictures:
        pixels = encoder.crop(bytes_of(picture).float() / 255)
        raw = encoder.vae.posterior(pixels).mean
        own = encoder.vae.module.config.get("shift_factor")
        missing = own if own else latents * float(raw.std())
        right = encoder.vae.decode(raw)
        apart.append((encoder.vae.decode(raw - missing) - right).abs())
        spread.append(right)
    return Decoded(latents, mean_of(apart), float(torch.cat([each.flatten() for each in spread]).std()))


def rows(encoder: InpaintEncoder, module: nn.Module, side: int) -> Iterator[tuple[str, str, str, str, str]]:
    """Each difference: what the pipeline does, what we do by default, how far they are apart, and with the option."""
    pictures = photos(side)
    way = InpaintEncoder(encoder.vae, 0, normalize=True, sizing="diffusers")
    apart = "{:.2g}".format
    yield (
        "odd sizes",
        "resizes (Lanczos)",
        "crop, centred",
        apart(odd_sizes(encoder, pictures)),
        apart(odd_sizes(way, pictures)),
    )
    masks = [f"{resized_masks(each, side):.2%} of the mask" for each in (encoder, way)]
    yield ("mask of twice the size", "Lanczos, >= 0.5", "bilinear, > 0.5", *masks)
    halves = [f"{1 - mask_of_one_half(each, side):.0%} of the mask" for each in (encoder, way)]
    yield ("mask of exactly 0.5", "inpaints", "keeps", *halves)
    yield (
        "padding_mask_crop",
        "crops to the hole, enlarges",
        "nothing",
        f"hole {padding_mask_crop(side):.1f} times as wide",
        f"data.masks.padding_mask_crop: {CROP_PADDING}",
    )
    yield from random_draws(encoder, pictures)
    yield from of_the_decoder(encoder, pictures)
    yield from in_bfloat16(encoder, module, pictures)


def random_draws(encoder: InpaintEncoder, pictures: list[Image.Image]) -> Iterator[tuple[str, str, str, str, str]]:
    """The posterior's row, of the VAE itself if it has a variance."""
    drawn, name = posterior(encoder, pictures), "posterior"
    if drawn is None:
        drawn = posterior(InpaintEncoder(random_kl(), 0, normalize=True), pictures)
        name = "posterior, of random weights, which vary most"
    assert drawn is not None
    yield (name, "samples", "mode", f"{drawn:.2g}", "posterior: sample, the same draws")


def of_the_decoder(encoder: InpaintEncoder, pictures: list[Image.Image]) -> Iterator[tuple[str, str, str, str, str]]:
    """SD3's decode, on this VAE and on random weights with SD3's own config."""
    random = InpaintEncoder(random_kl(16, **SD3), 0, normalize=True)
    for name, each in (("this VAE", encoder), ("random weights with SD3's shift and scale", random)):
        found = forgotten_shift(each, pictures, SD3["shift_factor"], SD3["scaling_factor"])
        apart = f"latents {found.latents:.2g}; pixels {found.pixels:.2g}, where they spread by {found.picture_std:.2g}"
        yield (f"SD3's decode, {name}", "forgets the shift", "as the VAE says", apart, "decode its latents yourself")


def in_bfloat16(
    encoder: InpaintEncoder, module: nn.Module, pictures: list[Image.Image]
) -> Iterator[tuple[str, str, str, str, str]]:
    """The rows of rounding; last, since they leave the module in bfloat16."""
    random = random_kl(16, **SD3)
    pairs = (("random weights", InpaintEncoder(random, 0, normalize=True), random), ("this VAE", encoder, module))
    for name, each, its_module in pairs:
        apart = f"{bfloat16(its_module, each, pictures):.2g}"
        yield (f"VAE in bfloat16, {name}", "bfloat16", "float32", apart, "dtype: bfloat16 of load_vae")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", default="embedded:vae", help="folder or hub name of a diffusers autoencoder")
    parser.add_argument("--subfolder", help="folder inside it")
    parser.add_argument("--side", type=int, default=256, help="shorter side of the photos in pixels")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    options = parser.parse_args(arguments)
    side = 64 if options.quick else options.side
    vae = load_vae(str(Path(options.vae)) if Path(options.vae).exists() else options.vae, options.subfolder)
    assert isinstance(vae, DiffusersVAE)
    machine.heading("Serving differences", "cpu", f"{options.vae}, photos of {side} pixels and more.")
    header = [
        "before the denoiser",
        "the pipeline",
        "we, by default",
        "apart",
        "apart with sizing: diffusers, or the option",
    ]
    table("What pipelines do otherwise", header, rows(InpaintEncoder(vae, 0, normalize=True), vae.module, side))


if __name__ == "__main__":
    main()
