"""What a data module makes of its training images, with their clean latents, as samples for shards."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from datamodules.decode.captions import CaptionOptions
from datamodules.decode.latent_cache import KEPT_SIZES, pack_latents
from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.order.loaders import StreamLoader
from datamodules.order.order import SampleOrder
from datamodules.order.sample_stream import SampleStream
from datamodules.shards.tar_index import LATENTS_FIELD
from datamodules.webdataset_datamodule import WebDatasetDataModule
from datamodules.writing.source_samples import EncodedSample
from inpaint_module.clean_latents import encode_clean
from inpaint_module.encoder import InpaintEncoder


def cached_samples(
    data: WebDatasetDataModule,
    encoder: InpaintEncoder,
    dtype: torch.dtype,
    positions: range,
    *,
    folder: Path,
    replaced: list[str],
) -> Iterator[EncodedSample]:
    """The samples at these positions of a plain order, in batches that begin where those of an unbroken run do.

    Args:
        data: its training shards, decoder and batch size are used.
        encoder: its VAE is used, on the device that it is on.
        dtype: of the latents.
        positions: from any to any, in steps of 1.
        folder: for the quarantine of bad samples.
        replaced: gets the reason of each bad sample that another stands in for.

    Raises:
        ValueError: latents that the dtype cannot hold, or too many bad samples.
    """
    begin = positions.start // data.batch_size * data.batch_size
    vae_sha256, device = encoder.vae.fingerprint().hex(), encoder.kernel.device
    with ThreadPoolExecutor() as pool:
        for batch in islice(_batches(data, begin, folder), -(-(positions.stop - begin) // data.batch_size)):
            latents = encode_clean(encoder, batch.get("target", batch["image"]).to(device)).cpu()
            _check_finite(latents, encoder.vae.name, batch["__key__"])
            latents = latents.to(dtype)
            _check_finite(latents, f"dtype {str(dtype).removeprefix('torch.')}", batch["__key__"])
            replaced += batch.get("notes", {}).get("bad", ())
            rows = [row for row, position in enumerate(batch["position"].tolist()) if position in positions]
            yield from pool.map(partial(_encode_row, {**batch, "latents": latents}, vae_sha256), rows)


def _check_finite(latents: Tensor, source: str, keys: list[str]) -> None:
    """Refuse latents (B, C, h, w) with infinite or NaN values, naming the first sample and where they come from."""
    finite = latents.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        key = keys[int(finite.int().argmin())]
        raise ValueError(
            f"sample {key!r}: expected finite latents, got infinite or NaN ones by {source}: "
            "choose a VAE or a dtype that does not overflow, such as bfloat16 or float32"
        )


def _batches(data: WebDatasetDataModule, begin: int, folder: Path) -> Iterator[dict[str, Any]]:
    """All samples in their order again and again, from position `begin` on, bad ones replaced."""
    order = SampleOrder(data.train_set.counts, seed=data.seed, window=data.order.window, shuffle=False)
    loader = StreamLoader(
        SampleStream(data.train_set, order, batch_size=data.batch_size),
        _with_all_masks(data.train_decoder),
        num_workers=data.num_workers,
        position=lambda: begin,
        seed=data.seed,
        folder=folder,
        max_bad_share=data.loading.max_bad_share,
        stall_timeout=data.loading.stall_timeout,
    )
    return iter(loader)


def _with_all_masks(decoder: SampleDecoder) -> SampleDecoder:
    """A decoder that leaves it to the training which own masks are used, and what is done to captions."""
    decoder = copy.deepcopy(decoder)
    decoder.options, decoder.trains = replace(decoder.options, captions=CaptionOptions()), False
    decoder.masks.share, decoder.masks.allow_empty = 1.0, True
    return decoder


def _encode_row(batch: Mapping[str, Any], vae_sha256: str, row: int) -> EncodedSample:
    """One sample of a batch as it goes into a shard."""
    image = batch["image"][row]
    height, width = image.shape[-2:]
    # fastest to write and read, and three quarters of a PNG
    fields = {"webp": _file_of(image, "WEBP", lossless=True, quality=0, method=0)}
    sizes = {name: batch[name][row].tolist() for name in KEPT_SIZES}
    target = "target" in batch and bool(batch["has_target"][row] if "has_target" in batch else True)
    of: dict[str, Any] = {"vae_sha256": vae_sha256, "image_size": (height, width), "sizes": sizes, "target": target}
    fields[LATENTS_FIELD] = pack_latents(batch["latents"][row], **of)
    if caption := batch["caption"][row]:
        fields["txt"] = caption.encode()
    if "label" in batch:
        fields["cls"] = str(int(batch["label"][row])).encode()
    if "mask" in batch and ("has_mask" not in batch or batch["has_mask"][row]):
        fields["mask.png"] = _file_of(batch["mask"][row].to(torch.uint8) * 255, "PNG")
    return EncodedSample(f"{batch['__key__'][row]}-{int(batch['position'][row])}", fields, (width, height))


def _file_of(image: Tensor, kind: str, **options: Any) -> bytes:
    """uint8 (3 or 1, H, W) as the bytes of a lossless image file."""
    file = io.BytesIO()
    picture: Image.Image = to_pil_image(image)
    picture.save(file, kind, **options)
    return file.getvalue()
