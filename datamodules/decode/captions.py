"""Captions and class labels: what a sample says about its image, and what is added to it or left out of it."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Any

import torch

from inpaint_module.parsing import check_at_least, check_share, parse_json
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


def check_encoding(name: str) -> str:
    """The name of an encoding, as given.

    Raises:
        ValueError: if Python knows no such encoding of texts.
    """
    try:
        b"a".decode(name)
    except UnicodeError:  # one letter may be half of one
        return name
    except LookupError as error:
        raise ValueError(f"caption_encoding: expected one that Python knows, such as latin-1, got {error}") from error
    return name


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
        draws = uniform(key(seed, torch.tensor([position]), Stream.TAGS), 2 * len(rest))[0].tolist()
        places = sorted(range(len(rest)), key=draws.__getitem__) if self.shuffle_tags else range(len(rest))
        kept = [rest[place] for place in places if draws[len(rest) + place] >= self.tag_dropout]
        joint = self.separator if self.separator.isspace() else f"{self.separator} "
        return joint.join([*first, *kept])
