"""Encode the training images once: inpaint shards cache-latents runs/latents --config configs/quickstart.yaml

Writes shards of what the config's data module makes of the training images (cropped, flipped, augmented, lossless),
with caption, class number, own mask, what was cut from which photo, and the clean latents of the config's VAE, of a
pair those of its target. Train
from them with data.train_shards=runs/latents and the same model: masks are painted anew at every step, and the VAE
encodes the masked images alone, half of its work. With --crops 4 every image is there four times, in other crops.

A run that was stopped or killed goes on when the same command is given again. latents.json tells what the shards are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import PIL
import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from tqdm import tqdm

from datamodules.decode.latent_cache import DTYPES
from datamodules.order.quarantine import QUARANTINE
from datamodules.shards.manifest import Shard, read_manifest
from datamodules.webdataset_datamodule import WebDatasetDataModule
from datamodules.writing.latent_samples import cached_samples
from datamodules.writing.shard_writer import ShardWriter, open_journal
from inpaint_module.base_models import EncoderOptions, encoder_for
from inpaint_module.commands import options
from inpaint_module.commands.config_files import make_parts, read_parts
from inpaint_module.commands.errors import GOES_ON, exit_code_of
from inpaint_module.commands.older_configs import data_settings_of_before
from inpaint_module.commands.parser import device_of
from inpaint_module.encoder import InpaintEncoder
from inpaint_module.files import atomic_write_text
from inpaint_module.redaction import redacted

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
        samples = cached_samples(data, encoder, torch_dtype, positions, folder=out, replaced=replaced)
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
