"""Cached latents in shards: a safetensors file beside each image, which says what it is of.

So the digest of a tar covers VAE, size and crop, and any part of a cache can be used by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

from safetensors.torch import load, save
from torch import Tensor

from datamodules.decode.reading import naming
from datamodules.shards.shard_set import ShardSet
from datamodules.shards.tar_index import LATENTS_FIELD, TARGET_FIELDS
from inpaint_module.batch import LatentsTag
from inpaint_module.parsing import Parsed, parse_json

DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # safetensors' names -> torch's
KEPT_SIZES = ("original_size", "crop")  # of a batch; its target_size is that of the image
_NAME, _ABOUT = "latents", "of"
_LARGEST_SIDE = 2**31 - 1
Pair = tuple[int, int]


def pack_latents(
    latents: Tensor,
    *,
    vae_sha256: str,
    image_size: Pair,
    sizes: Mapping[str, Sequence[int]] | None = None,
    target: bool = False,
) -> bytes:
    """A safetensors file of one image's latents.

    Args:
        latents: (C, h, w), in one of the DTYPES.
        vae_sha256: of the weights of the VAE that made them, in hex.
        image_size: (H, W) pixels.
        sizes: its `original_size` and `crop`, see `Batch`; None for a file that does not say.
        target: whether they are of the image's target.
    """
    of_target = {"target": True} if target else {}  # others have the bytes that they had before there were targets
    about = json.dumps({"vae_sha256": vae_sha256, "image_size": image_size, **(sizes or {}), **of_target})
    return save({_NAME: latents.contiguous()}, {_ABOUT: about})  # one entry: safetensors shuffles several


def read_tag(data: bytes) -> LatentsTag:
    """What a file of `pack_latents` is of, from its header.

    Raises:
        ValueError: it is no such file.
    """
    return _read_header(data)[0]


def read_latents(fields: Mapping[str, bytes], tag: LatentsTag) -> Tensor:
    """A sample's latents (C, h, w), in the dtype that they are kept in.

    Raises:
        ValueError: it has none, or such as are not of `tag`.
    """
    if LATENTS_FIELD not in fields:
        raise ValueError(f"expected {LATENTS_FIELD}, as the first sample of data.train_shards has it, got none")
    found = read_tag(fields[LATENTS_FIELD])
    check_pair(fields, found)
    if found._replace(has_sizes=found.has_sizes and tag.has_sizes, target=tag.target) != tag:
        raise ValueError(f"expected latents like the first sample's of data.train_shards, {tag}, got {found}")
    return load(fields[LATENTS_FIELD])[_NAME]


def check_pair(fields: Iterable[str], found: LatentsTag) -> None:
    """Refuse latents of the image where a target lies beside it: the model would learn the image.

    Raises:
        ValueError: saying what to do.
    """
    if not found.target and (wanted := sorted(set(fields) & set(TARGET_FIELDS))):
        raise ValueError(
            f"expected latents of the target, as the sample has {wanted[0]}, got latents of its image; make the cache "
            "again, from the shards with their targets"
        )


def read_sizes(data: bytes) -> dict[str, Pair]:
    """The `original_size` and `crop` of a file of `pack_latents`.

    Raises:
        ValueError: it is no such file.
    """
    return _read_header(data)[1]


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
    has_sizes = all(tag is None or tag.has_sizes for tag in tags.values())
    target = any(tag is not None and tag.target for tag in tags.values())
    kinds = {tag and tag._replace(has_sizes=has_sizes, target=target) for tag in tags.values()}
    if len(kinds) > 1:
        found = "; ".join(f"{path}: {tag or 'none'}" for path, tag in tags.items())
        raise ValueError(f"data.train_shards: expected cached latents of one kind everywhere, or nowhere, got {found}")
    return next(iter(kinds), None)


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
        raise ValueError("data.order.bucket_step: expected null for shards with cached latents, which have one shape")


def _tag_of(shards: ShardSet, number: int) -> LatentsTag | None:
    """By the first sample of one shard; the shard itself is read only if its index says that there are latents."""
    if LATENTS_FIELD not in shards.index(number).fields[0]:
        return None
    fields = shards.read(shards.starts[number]).fields
    tag = read_tag(fields[LATENTS_FIELD])
    with naming(f"data.train_shards: {shards.shards[number].path}"):
        check_pair(fields, tag)
    return tag


def _read_header(data: bytes) -> tuple[LatentsTag, dict[str, Pair]]:
    """What a file is of, and the sizes in it; none in a cache that was written before they were kept."""
    try:
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], "its header")
        about = parse_json(header["__metadata__"][_ABOUT].text(), "its metadata")
        sizes = {name: _pair(about[name]) for name in KEPT_SIZES if about.get(name) is not None}
        shape, dtype = (header[_NAME][field] for field in ("shape", "dtype"))
        if dtype.text() not in DTYPES:
            raise dtype.refuse(f"one of {', '.join(DTYPES)}")
        sides = tuple(side.whole(1) for side in shape.items(3))
        target = (said := about.get("target")) is not None and said.value is True
        of = about["vae_sha256"].text(), _pair(about["image_size"]), sides, DTYPES[dtype.text()]
    except ValueError as error:
        raise ValueError(
            f"expected {LATENTS_FIELD} as datamodules.cache_latents writes it, got {data[:64]!r}: {error}"
        ) from error
    return LatentsTag(*of, has_sizes=len(sizes) == len(KEPT_SIZES), target=target), sizes


def _pair(values: Parsed) -> Pair:
    first, second = values.items(2)
    return first.whole(high=_LARGEST_SIDE), second.whole(high=_LARGEST_SIDE)
