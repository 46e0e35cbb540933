"""Read the captions once: inpaint shards cache-text runs/text --config configs/sd15.yaml --config my.yaml

Writes what the text encoders of the config's base model make of every caption of its training and validation data,
with trigger words, and of an empty one. Train with the same configs and --model.base.text.cache=runs/text: the text
encoders are not loaded then.

A cache that was stopped, or whose data has grown, goes on when the same command is given again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from tqdm import tqdm

from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.shards.shard_set import ShardSet
from datamodules.webdataset_datamodule import WebDatasetDataModule
from inpaint_module.base_models import TextOptions, text_of
from inpaint_module.base_models.single_file import folder_of
from inpaint_module.base_models.text import TextConditioning, check_cacheable
from inpaint_module.base_models.text_cache import describe, write_text_cache
from inpaint_module.cli import options
from inpaint_module.cli.errors import GOES_ON, exit_code_of
from inpaint_module.cli.parser import device_of, make_parts, read_parts


def captions_of(data: WebDatasetDataModule) -> Iterator[str]:
    """Every caption that training and validation give the model; samples whose caption cannot be read are left out.

    Raises:
        ValueError: tags that move or are left out, so that a caption is not the same each time.
    """
    tags = data.train_decoder.options.captions
    if tags.shuffle_tags or tags.tag_dropout:
        raise ValueError(
            "data.decoder.captions: expected shuffle_tags: false and tag_dropout: 0 for a cache of text, since a "
            f"caption is another each time with them; got {tags.shuffle_tags} and {tags.tag_dropout}"
        )
    return _captions(((data.train_set, data.train_decoder), (data.val_set, data.val_decoder)))


def _captions(parts: Sequence[tuple[ShardSet, SampleDecoder]]) -> Iterator[str]:
    total = sum(len(shards) for shards, _ in parts)
    with tqdm(total=total, unit="sample", desc="captions") as bar:
        for shards, decoder in parts:
            for number in range(len(shards)):
                bar.update()
                try:
                    yield decoder.caption(shards.read(number))
                except ValueError as error:
                    bar.write(f"left out: {error}", sys.stderr)


def run(given: Namespace, overrides: Sequence[str]) -> int:
    """The command, with what `options.shards_cache_text` parsed."""
    values = read_parts(given.config, overrides, model=LightningModule, data=LightningDataModule)
    base = values.get("model.init_args.base.init_args")
    if base is None or "path" not in base:
        raise ValueError("config: expected a base model with text encoders, of a path, got one without")
    data = make_parts({"data": values.data}, data=LightningDataModule).data
    if not isinstance(data, WebDatasetDataModule):
        raise ValueError(f"config: expected data of a WebDatasetDataModule, got {type(data).__name__}")
    named = base.get("text")
    chosen = TextOptions() if named is None else make_parts({"text": named}, text=TextOptions).text
    chosen.cache = None
    path = folder_of(base.path, base.get("config"))

    def load() -> TextConditioning:
        text = text_of(path, chosen)
        check_cacheable(text)
        text.to(device_of(given.device))
        return text

    captions = ["", *captions_of(data), *given.caption]
    progress = partial(tqdm, unit="caption", desc="embeddings")
    made = describe(path, chosen)
    count = write_text_cache(given.out, captions, load, made, dtype=given.dtype, progress=progress)
    sys.stdout.write(f"{given.out}: {count} captions written, {len(set(captions)) - count} were there\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 0, 1 after an error, 130 after Ctrl-C."""
    return exit_code_of(lambda: run(*options.shards_cache_text().parse(arguments)), GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
