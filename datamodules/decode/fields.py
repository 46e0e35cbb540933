"""What a sample has beside its pictures: a caption, a class number, cached latents; what is added to captions.

Cached latents are a safetensors file beside each image, which says what it is of: so the digest of a tar covers VAE,
size and crop, and any part of a cache can be used by itself.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from datamodules.decode.reading import naming
from datamodules.shards.shard_set import ShardSet
from datamodules.shards.tar_index import LATENTS_FIELD, TARGET_FIELDS
from inpaint_module.batch import LatentsTag
from inpaint_module.parsing import Parsed, check_at_least, check_share, parse_json
from inpaint_module.randomness import Stream, key, uniform

_LARGEST_LABEL = 2**63 - 1
_NULS = re.compile(r"\0[\0\s]*\Z")
_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, encoding: str = "utf-8") -> str:
    """The text of a file, without its byte-order mark and the NULs at its end.

    Args:
        data: the bytes; a byte-order mark of UTF-8, UTF-16 or UTF-32 says how to read them.
        encoding: of bytes without such a mark.

    Raises:
        ValueError: if the bytes are not of this encoding, or hold NULs, as UTF-16 without a mark does.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), encoding)
    try:
        text = _NULS.sub("", data.decode(encoding))
    except UnicodeError as error:
        raise ValueError(f"expected a text in {encoding.upper().removesuffix('-SIG')}: {error}") from error
    if "\0" in text:
        raise ValueError(f"expected a text in {encoding.upper()}, got NULs in it, as UTF-16 read so has")
    return text


def read_json(fields: dict[str, bytes]) -> dict[str, Any]:
    """The object in `json`; empty without one.

    Raises:
        ValueError: if it is not JSON, or not an object.
    """
    content = parse_json(fields["json"], "json", strict=False).value if "json" in fields else {}
    if not isinstance(content, dict):
        raise ValueError(f"expected an object in json, got {type(content).__name__}")
    return content


def parse_caption(fields: dict[str, bytes], max_bytes: int, key: str = "caption") -> str:
    """The caption from `instruction.txt`, the text of a pair, else from `txt`, else from `key` in `json`, else empty.

    Raises:
        ValueError: if it is not UTF-8 (nor says by a byte-order mark what it is), not text, or longer than `max_bytes`.
    """
    data = fields.get("instruction.txt", fields.get("txt", b""))
    if not {"instruction.txt", "txt"} & fields.keys() and "json" in fields:
        caption = read_json(fields).get(key) or ""
        if not isinstance(caption, str):
            raise ValueError(f"expected a text as {key} in json, got {type(caption).__name__}")
        data = caption.encode()
    if len(data) > max_bytes:
        raise ValueError(f"expected a caption of at most {max_bytes} bytes, got {len(data)}")
    return decode_text(data).strip()


def parse_label(fields: dict[str, bytes], key: str = "label") -> int:
    """The class number from `cls`, a whole number as text, else from `key` in `json`.

    Raises:
        ValueError: if there is none, or one that is not a whole number from 0 to 2^63 - 1.
    """
    if "cls" in fields:
        text = decode_text(fields["cls"]).strip()
        label: Any = int(text) if re.fullmatch("[0-9]{1,19}", text) else text[:20]
    elif (label := read_json(fields).get(key)) is None:
        raise ValueError(
            f"expected a class label in cls, or as {key} in json, got none; data.decoder.label_key: null trains "
            "without labels"
        )
    if type(label) is not int or not 0 <= label <= _LARGEST_LABEL:
        place = "cls" if "cls" in fields else f"{key} in json"
        raise ValueError(f"expected a whole number from 0 to 2^63 - 1 as class label in {place}, got {label!r:.40}")
    return label


@dataclass(frozen=True)
class CaptionOptions:
    """What is done to the captions of samples; of their tags in training alone, by (seed, position).

    The model's own `caption_dropout` leaves out a whole caption, whatever was added to it here.

    Args:
        prefix: Text before every caption, such as a trigger word, as it stands, spaces and commas included; or a list
            of texts, one for each entry of train_shards: a prior's photos have none. Validation gets the first.
        suffix: Likewise, after it.
        shuffle_tags: Bring the tags of a caption, the texts between separators, into another order each time.
        tag_dropout: Share (0..1) of the tags that are left out each time.
        keep_tags: This many first tags are neither moved nor left out.
        separator: What is between tags.

    Raises:
        ValueError: naming the argument, if one is out of range.
    """

    prefix: list[str] | str = ""
    suffix: list[str] | str = ""
    shuffle_tags: bool = False
    tag_dropout: float = 0.0
    keep_tags: int = 0
    separator: str = ","

    def __post_init__(self) -> None:
        check_share("data.decoder.captions", tag_dropout=self.tag_dropout)
        check_at_least(0, "data.decoder.captions", keep_tags=self.keep_tags)
        if not self.separator:
            raise ValueError("data.decoder.captions.separator: expected a text, such as a comma, got an empty one")

    def check_sources(self, sources: int) -> None:
        """Refuse lists of other lengths than the number of sources."""
        for name, texts in (("prefix", self.prefix), ("suffix", self.suffix)):
            if not isinstance(texts, str) and len(texts) != sources:
                raise ValueError(
                    f"data.decoder.captions.{name}: expected one text, or one for each of the {sources} entries of "
                    f"data.train_shards, got {texts}"
                )

    def around(self, caption: str, source: int = 0) -> str:
        """A caption of an entry of train_shards between prefix and suffix; without one, these without a comma."""
        before, after = (texts if isinstance(texts, str) else texts[source] for texts in (self.prefix, self.suffix))
        if caption:
            return f"{before}{caption}{after}".strip()
        return f"{before}{after}".strip().strip(self.separator).strip()

    def tags(self, caption: str, seed: int, position: int) -> str:
        """A caption with its tags shuffled and some left out, as a function of (seed, position).

        Example:
            >>> CaptionOptions(shuffle_tags=True, keep_tags=1).tags("cat, grass, sun, red", seed=0, position=1)
            'cat, red, sun, grass'
        """
        if not (self.shuffle_tags or self.tag_dropout):
            return caption
        tags = [tag for part in caption.split(self.separator) if (tag := part.strip())]
        first, rest = tags[: self.keep_tags], tags[self.keep_tags :]
        if not rest:
            return caption
        numbers = uniform(key(seed, torch.tensor([position]), Stream.TAGS), 2 * len(rest))[0].tolist()
        places = sorted(range(len(rest)), key=numbers.__getitem__) if self.shuffle_tags else range(len(rest))
        kept = [rest[place] for place in places if numbers[len(rest) + place] >= self.tag_dropout]
        joint = self.separator if self.separator.isspace() else f"{self.separator} "
        return joint.join([*first, *kept])


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


def read_latents(fields: Mapping[str, bytes], tag: LatentsTag) -> Tensor:
    """A sample's latents (C, h, w), in the dtype that they are kept in.

    Raises:
        ValueError: it has none, or such as are not of `tag`.
    """
    if LATENTS_FIELD not in fields:
        raise ValueError(f"expected {LATENTS_FIELD}, as the first sample of data.train_shards has it, got none")
    found, _ = read_header(fields[LATENTS_FIELD])
    _check_pair(fields, found)
    if found._replace(has_sizes=found.has_sizes and tag.has_sizes, target=tag.target) != tag:
        raise ValueError(f"expected latents like the first sample's of data.train_shards, {tag}, got {found}")
    return load(fields[LATENTS_FIELD])[_NAME]


def _check_pair(fields: Iterable[str], found: LatentsTag) -> None:
    """Refuse latents of the image where a target lies beside it: the model would learn the image."""
    if not found.target and (wanted := sorted(set(fields) & set(TARGET_FIELDS))):
        raise ValueError(
            f"expected latents of the target, as the sample has {wanted[0]}, got latents of its image; make the cache "
            "again, from the shards with their targets"
        )


def find_tag(shards: ShardSet, sources: Sequence[int], image_size: Pair, *, bucketed: bool) -> LatentsTag | None:
    """What the cached latents of all shards are of, by the first sample of each source; None if they have none.

    Args:
        shards: of all sources, in turn.
        sources: how many of the shards each source has.
        image_size: (H, W) of the data module, which must be that of the latents' images.
        bucketed: whether batches come in several shapes, which latents do not.

    Raises:
        ValueError: some sources have latents and others do not, or others; naming the argument that does not fit them.
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
    tag = next(iter(kinds), None)
    if tag is not None and image_size != tag.image_size:
        raise ValueError(
            f"data.image_size: expected {tag.image_size}, as the latents in data.train_shards have, got {image_size}"
        )
    if tag is not None and bucketed:
        raise ValueError("data.order.bucket_step: expected null for shards with cached latents, which have one shape")
    return tag


def _tag_of(shards: ShardSet, number: int) -> LatentsTag | None:
    """By the first sample of one shard; the shard itself is read only if its index says that there are latents."""
    if LATENTS_FIELD not in shards.index(number).fields[0]:
        return None
    fields = shards.read(shards.starts[number]).fields
    tag, _ = read_header(fields[LATENTS_FIELD])
    with naming(f"data.train_shards: {shards.shards[number].path}"):
        _check_pair(fields, tag)
    return tag


def read_header(data: bytes) -> tuple[LatentsTag, dict[str, Pair]]:
    """What a file of `pack_latents` is of, and the `original_size` and `crop` in it; no sizes in an older cache.

    Raises:
        ValueError: it is no such file.
    """
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
