"""Cached latents in shards: a safetensors file beside each image, which says what it is of.

So the digest of a tar covers VAE, size and crop, and any part of a cache can be used by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from safetensors.torch import load, save
from torch import Tensor

from datamodules.shards.shard_set import ShardSet
from datamodules.shards.tar_index import LATENTS_FIELD
from inpaint_module.clean_latents import LatentsTag

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names -> torch's
_NAME, _ABOUT = "latents", "of"


def pack_latents(latents: Tensor, *, vae_sha256: str, image_size: tuple[int, int]) -> bytes:
    """A safetensors file of one image's latents (C, h, w) in one of the DTYPES; `image_size` is (H, W) pixels."""
    about = json.dumps({"vae_sha256": vae_sha256, "image_size": image_size})
    return save({_NAME: latents.contiguous()}, {_ABOUT: about})  # one entry: safetensors shuffles several


def read_tag(data: bytes) -> LatentsTag:
    """What a file of `pack_latents` is of, from its header.

    Raises:
        ValueError: it is no such file.
    """
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        entry, about = header[_NAME], json.loads(header["__metadata__"][_ABOUT])
        height, width = about["image_size"]
        return LatentsTag(about["vae_sha256"], (height, width), tuple(entry["shape"]), DTYPES[entry["dtype"]])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"expected {LATENTS_FIELD} as datamodules.cache_latents writes it, got {data[:64]!r}: {error!r}"
        ) from error


def read_latents(fields: Mapping[str, bytes], tag: LatentsTag) -> Tensor:
    """A sample's latents (C, h, w), in the dtype that they are kept in.

    Raises:
        ValueError: it has none, or such as are not of `tag`.
    """
    if LATENTS_FIELD not in fields:
        raise ValueError(f"expected {LATENTS_FIELD}, as the first sample of data.train_shards has it, got none")
    if (found := read_tag(fields[LATENTS_FIELD])) != tag:
        raise ValueError(f"expected latents like the first sample's of data.train_shards, {tag}, got {found}")
    return load(fields[LATENTS_FIELD])[_NAME]


def find_tag(shards: ShardSet, sources: Sequence[int]) -> LatentsTag | None:
    """What the cached latents of all shards are of, by the first sample of each source; None if they have none.

    Args:
        shards: of all sources, in turn.
        sources: how many of the shards each source has.

    Raises:
        ValueError: some sources have latents and others do not, or others.
    """
    tags: dict[str, LatentsTag | None] = {}
    for first, last in pairwise(accumulate(sources, initial=0)):
        filled = [number for number in range(first, last) if shards.counts[number]]
        if filled:
            tags[shards.shards[filled[0]].path] = _tag_of(shards, filled[0])
    if len(set(tags.values())) > 1:
        found = "; ".join(f"{path}: {tag or 'none'}" for path, tag in tags.items())
        raise ValueError(f"data.train_shards: expected cached latents of one kind everywhere, or nowhere, got {found}")
    return next(iter(tags.values()))


def check_use(tag: LatentsTag, image_size: tuple[int, int], *, bucketed: bool) -> None:
    """Refuse a data module of other sizes (H, W) than the latents' images.

    Raises:
        ValueError: naming the argument.
    """
    if image_size != tag.image_size:
        raise ValueError(
            f"data.image_size: expected {tag.image_size}, as the latents in data.train_shards have, got {image_size}"
        )
    if bucketed:
        raise ValueError("data.bucket_step: expected null for shards with cached latents, which have one shape")


def _tag_of(shards: ShardSet, number: int) -> LatentsTag | None:
    """By the first sample of one shard; the shard itself is read only if its index says that there are latents."""
    if LATENTS_FIELD not in shards.index(number).fields[0]:
        return None
    return read_tag(shards.read(shards.starts[number]).fields[LATENTS_FIELD])
