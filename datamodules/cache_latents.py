"""Encode the training images once: inpaint shards cache-latents runs/latents --config configs/quickstart.yaml

Writes shards of what the config's data module makes of the training images (cropped, flipped, augmented, lossless),
with caption, class number, own mask, what was cut from which photo, and the clean latents of the config's VAE, of a
pair those of its target. Train
from them with data.train_shards=runs/latents and the same model: masks are painted anew at every step, and the VAE
encodes the masked images alone, half of its work. With --crops 4 every image is there four times, in other crops.

A run that was stopped or killed goes on when the same command is given again. latents.json says what the shards are.
"""

from __future__ import annotations

import copy
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import PIL
import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from tqdm import tqdm

from datamodules.decode.fields import DTYPES, KEPT_SIZES, CaptionOptions, pack_latents
from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.order.failures import QUARANTINE
from datamodules.order.loaders import StreamLoader
from datamodules.order.order import SampleOrder
from datamodules.order.sample_stream import SampleStream
from datamodules.shards.manifest import Shard, read_manifest
from datamodules.shards.tar_index import LATENTS_FIELD
from datamodules.webdataset_datamodule import WebDatasetDataModule
from datamodules.writing.shard_writer import ShardWriter, open_journal
from datamodules.writing.source_samples import EncodedSample
from inpaint_module.base_models import EncoderOptions, encoder_for
from inpaint_module.clean_latents import encode_clean
from inpaint_module.cli import options
from inpaint_module.cli.errors import GOES_ON, exit_code_of
from inpaint_module.cli.older_configs import data_settings_of_before
from inpaint_module.cli.parser import device_of, make_parts, read_parts
from inpaint_module.encoder import InpaintEncoder
from inpaint_module.files import atomic_write_text, redacted

RECORD = "latents.json"
_FORMAT = 3  # 1 had no sizes and crops, 2 no targets; an unfinished cache is not gone on with in another
_OF_LOADING = ("num_workers", "stall_timeout", "val_shards", "val_batch_size", "cache_dir", "cache_bytes")
_OF_TRAINING = ("mask_generator", "graph_masks", "own_mask_probability", "allow_empty_masks", "transfer_probability")


class Parts(NamedTuple):
    """What configs say: the encoder, the data module, and its arguments as plain values."""

    encoder: InpaintEncoder
    data: WebDatasetDataModule
    settings: dict[str, Any]


class Report(NamedTuple):
    """What was written, and the bad samples that others stand in for, each with its reason."""

    shards: list[Shard]
    replaced: list[str]


def parts_from_configs(configs: Sequence[Path], overrides: Sequence[str] = ()) -> Parts:
    """Encoder and data module of config files, the later over the earlier, and of options such as `--data.seed=1`.

    The denoiser is not made.

    Raises:
        ValueError: a part is missing, or is of another kind.
    """
    values = read_parts(configs, overrides, model=LightningModule, data=LightningDataModule)
    base = values.get("model.init_args.base.init_args")
    if base is None:
        raise ValueError(f"config: expected a model with an encoder, got {values.model.class_path}")
    data = make_parts({"data": values.data}, data=LightningDataModule).data
    if not isinstance(data, WebDatasetDataModule):
        raise ValueError(f"config: expected data of a WebDatasetDataModule, got {type(data).__name__}")
    return Parts(_encoder(base), data, values.data.init_args.as_dict())


def _encoder(base: Namespace) -> InpaintEncoder:
    """That of a base model's arguments in a config: named there, or to be found in its folder."""
    named = base.get("encoder")
    if "path" not in base:
        return make_parts({"encoder": named}, encoder=InpaintEncoder).encoder
    options = None if named is None else make_parts({"encoder": named}, encoder=EncoderOptions).encoder
    return encoder_for(base.path, base.train, options, base.get("config"))


def cache_latents(
    data: WebDatasetDataModule,
    encoder: InpaintEncoder,
    out: str | Path,
    *,
    crops: int = 1,
    dtype: str = "float32",
    shard_bytes: int = options.SHARD_BYTES,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Report:
    """Write the training samples of positions 0 to crops * N of a plain order, with their clean latents.

    Goes on with what a killed run of the same arguments has finished. Bad samples are replaced as in training.

    Args:
        data: its training shards, decoder and batch size are used.
        encoder: its VAE is used, on the device that it is on.
        out: a folder without shards, or with an unfinished run; made if missing.
        crops: how often each image is written, each time with the crop, flip and augmentations of another position.
        dtype: float32 for the very latents that training would make, bfloat16 or float16 for half the size.
        shard_bytes: size of a tar, about.
        settings: arguments of the data module, for the record.
        progress: show a progress bar.

    Raises:
        ValueError: arguments that a cache cannot serve, shards in `out` already, or an unfinished run of other
            arguments, or too many bad samples.
    """
    out = Path(out)
    _check(data, encoder, crops, dtype)
    record = _record(data, encoder, crops=crops, dtype=dtype, shard_bytes=shard_bytes, settings=settings or {})
    with closing(open_journal(out, record)) as journal:
        first, total, replaced = journal.next_source, record["samples"], journal.skipped
        positions, torch_dtype = range(first, total), getattr(torch, dtype)
        samples = _samples_with_latents(data, encoder, torch_dtype, positions, folder=out, replaced=replaced)
        bar = tqdm(samples, initial=first, total=total, unit="image", disable=not progress)
        with closing(ShardWriter(out, shard_bytes, None, number=len(journal.shards))) as writer:
            for position, sample in enumerate(bar, first):
                if finished := writer.write(*sample):
                    journal.add(*finished, next_source=position, skipped=replaced)
            if finished := writer.finish():
                journal.add(*finished, next_source=total, skipped=replaced)
        atomic_write_text(out / RECORD, json.dumps(record, indent=1) + "\n")
        journal.publish()
    return Report(read_manifest(out), list(dict.fromkeys(replaced)))


def _check(data: WebDatasetDataModule, encoder: InpaintEncoder, crops: int, dtype: str) -> None:
    if crops < 1:
        raise ValueError(f"crops: expected at least 1, got {crops}")
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES.values())}, got {dtype!r}")
    if encoder.posterior != "mode":
        raise ValueError(f"encoder.posterior: expected mode, which can be kept; got {encoder.posterior}")
    if data.buckets is not None:
        raise ValueError("data.order.bucket_step: expected null, since cached latents have one shape")
    if data.order.source_weights is not None or data.order.repeats is not None:
        raise ValueError(
            "data.order.source_weights, data.order.repeats: expected null; cache each source into a folder of its own, "
            "weigh those in training"
        )
    if data.latents is not None:
        raise ValueError(f"data.train_shards: expected shards of images, got cached latents: {data.latents}")


def _record(
    data: WebDatasetDataModule, encoder: InpaintEncoder, settings: Mapping[str, Any], **arguments: Any
) -> dict[str, Any]:
    """All that the shards depend on, as JSON gives it back."""
    record = {
        "format": _FORMAT,
        "samples": arguments["crops"] * len(data.train_set),
        **arguments,
        "image_size": data.train_decoder.image_size,
        "seed": data.seed,
        "batch_size": data.batch_size,
        "dataset_fingerprint": data.train_set.fingerprint,
        "vae_sha256": encoder.vae.fingerprint().hex(),
        "ratio": encoder.vae.ratio,
        "channels": encoder.vae.channels,
        "versions": {"torch": torch.__version__, "pillow": PIL.__version__},
        "data": {
            name: value
            for name, value in data_settings_of_before(settings).items()  # a cache begun then goes on
            if name not in _OF_LOADING + _OF_TRAINING
        },
    }
    return redacted(json.loads(json.dumps(record, default=str)))


def _samples_with_latents(
    data: WebDatasetDataModule,
    encoder: InpaintEncoder,
    dtype: torch.dtype,
    positions: range,
    *,
    folder: Path,
    replaced: list[str],
) -> Iterator[EncodedSample]:
    """The samples at these positions of a plain order, in batches that begin where those of an unbroken run do."""
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
    height, width = (image := batch["image"][row]).shape[-2:]
    # fastest to write and read, and three quarters of a PNG
    fields = {"webp": _file_of(image, "WEBP", lossless=True, quality=0, method=0)}
    sizes = {name: batch[name][row].tolist() for name in KEPT_SIZES}
    target = "target" in batch and bool(batch["has_target"][row] if "has_target" in batch else True)
    of: dict[str, Any] = {"vae_sha256": vae_sha256, "image_size": (height, width), "sizes": sizes, "target": target}
    fields[LATENTS_FIELD] = pack_latents(batch["latents"][row], **of)
    if "reference" in batch and ("has_reference" not in batch or batch["has_reference"][row]):
        fields["reference.webp"] = _file_of(batch["reference"][row], "WEBP", lossless=True, quality=0, method=0)
    if caption := batch["caption"][row]:
        fields["txt"] = caption.encode()
    fields |= {"cls": str(int(batch["label"][row])).encode()} if "label" in batch else {}
    if "mask" in batch and ("has_mask" not in batch or batch["has_mask"][row]):
        fields["mask.png"] = _file_of(batch["mask"][row].to(torch.uint8) * 255, "PNG")
    return EncodedSample(f"{batch['__key__'][row]}-{int(batch['position'][row])}", fields, (width, height))


def _file_of(image: Tensor, kind: str, **options: Any) -> bytes:
    """uint8 (3 or 1, H, W) as the bytes of a lossless image file."""
    file = io.BytesIO()
    to_pil_image(image).save(file, kind, **options)
    return file.getvalue()


def run(given: Namespace, overrides: Sequence[str]) -> int:
    """The command, with what `options.shards_cache_latents` parsed."""
    chosen = {"crops": given.crops, "dtype": given.dtype, "shard_bytes": given.shard_bytes}
    encoder, data, settings = parts_from_configs(given.config, overrides)
    encoder.to(device_of(given.device))
    report = cache_latents(data, encoder, given.out, settings=settings, progress=True, **chosen)
    if report.replaced:
        sys.stderr.write(f"{len(report.replaced)} bad samples replaced, see {given.out / QUARANTINE}\n")
    count, size = (sum(getattr(shard, name) for shard in report.shards) for name in ("count", "bytes"))
    sys.stdout.write(f"{count} samples, {size / count / 1000:.1f} kB each, in {len(report.shards)} shards\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    return exit_code_of(lambda: run(*options.shards_cache_latents().parse(arguments)), GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
