"""One source on disk -> the fields of its sample: checked, shrunk, with what lies beside it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from datamodules.decode.annotations import RunLengths, check_runs, parse_annotations
from datamodules.decode.conversion import ORIENTATION, StoredPicture, stored_picture
from datamodules.decode.fields import decode_text, parse_caption, parse_label, read_json
from datamodules.decode.mask_files import mask_of, mask_turn, why_look
from datamodules.decode.mask_sources import read_labels
from datamodules.decode.reading import Turn, check_pair, image_size, read_turn, to_rgb, upright, upright_size
from datamodules.shards.tar_index import kinds_of
from datamodules.writing.source_lists import Source
from datamodules.writing.source_tables import Cell

_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}
_MAX_CAPTION_BYTES = 1 << 20
UNKNOWN = "with a json that has neither a caption nor annotations"


class Resize(NamedTuple):
    """Bring the short side, or the longest, down to so many pixels; quality 1..100 for JPEG and WEBP."""

    short_side: int | None = None
    max_side: int | None = None
    quality: int = 92

    def scale(self, width: int, height: int) -> float:
        """The factor for an image of this size, at most 1."""
        short = self.short_side / min(width, height) if self.short_side else 1.0
        longest = self.max_side / max(width, height) if self.max_side else 1.0
        return min(1.0, short, longest)


class EncodedSample(NamedTuple):
    """A sample as it goes into a shard; `size` is the upright width and height of its image in pixels."""

    key: str
    fields: dict[str, bytes]
    size: tuple[int, int]


class PackedSample(NamedTuple):
    """A sample, the kinds of things that were found for it, and what an account notes of it, (kind, name)."""

    sample: EncodedSample
    found: tuple[str, ...]
    notes: tuple[tuple[str, str], ...]


class Packing(NamedTuple):
    """How sources become samples: shrinking, the most pixels of a picture, the encoding of texts, the way of masks."""

    resize: Resize = Resize()
    max_pixels: int = 50_000_000
    encoding: str = "utf-8"
    inverted_masks: bool = False
    transparent_masks: bool = False


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Any error as a ValueError that names the file; Pillow's own may end in a memory address."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{what}: cannot be read as a picture") from error
    except OSError as error:
        raise ValueError(f"{what}: {error.strerror or error}") from error
    except Exception as error:  # Pillow raises many kinds on damaged files, SyntaxError among them
        raise ValueError(f"{what}: {error}") from error


class _Reader:
    """Reads what a source consists of, its image first; each error names the very file."""

    def __init__(self, source: Source, packing: Packing) -> None:
        self.source, self.packing = source, packing
        self.fields: dict[str, bytes] = {}
        self.notes: list[tuple[str, str]] = []
        self.stored: StoredPicture | None = None
        self.wanted: StoredPicture | None = None  # the target
        self.further: StoredPicture | None = None  # the reference
        self.frame, self.turn = (0, 0), Turn()  # upright width and height of the image, and what makes it upright
        self.turned = False  # whether something beside the image is drawn on it as it lies in its file

    def read(self, place: Path | Cell, use: Callable[[str, bytes], None]) -> None:
        """Give a file's name and bytes to `use`."""
        origin = f"{self.source.origin}: " if self.source.origin and not isinstance(place, Cell) else ""
        with _naming(f"{origin}{place}"):
            use(place.name, place.read() if isinstance(place, Cell) else place.read_bytes())

    def note(self, kind: str, name: str = "") -> None:
        """Something for the account."""
        self.notes.append((kind, name or self.source.name))

    def image(self, name: str, data: bytes) -> None:
        """The image itself."""
        self.stored = stored_picture(data, name, self.packing.max_pixels)
        self.frame, self.turn = upright_size(self.stored.image), read_turn(self.stored.image)
        for kind in self.stored.notes:
            self.note(kind)

    def _lies(self, size: tuple[int, int], own: Turn = Turn()) -> None:  # noqa: B008, immutable
        """Refuse what is of another shape than the image, and notice what was drawn on the stored pixels."""
        self.turned |= mask_turn(size, self.frame, self.turn if own == Turn() else Turn()) != Turn()

    def mask(self, name: str, data: bytes) -> None:
        """A mask, as training will see it."""
        stored = stored_picture(data, name, self.packing.max_pixels)
        self._lies(upright_size(stored.image), read_turn(stored.image))
        ways = {"inverted": self.packing.inverted_masks, "transparent": self.packing.transparent_masks}
        grey = mask_of(stored.image, stored.data, self.frame, self.turn, **ways)
        if any(ways.values()):  # written as training reads it by default
            self.fields["mask.png"] = _png(grey)
        else:
            self.fields[f"mask.{stored.suffix}"] = stored.data
        if kind := why_look(np.asarray(grey) >= 128):
            self.note(kind, name)

    def target(self, name: str, data: bytes) -> None:
        """What the image should become."""
        self.wanted = stored_picture(data, name, self.packing.max_pixels)
        check_pair(upright_size(self.wanted.image), self.frame)
        for kind in self.wanted.notes:
            self.note(kind, name)

    def reference(self, name: str, data: bytes) -> None:
        """The reference picture of an edit model, of any size."""
        self.further = stored_picture(data, name, self.packing.max_pixels)
        for kind in self.further.notes:
            self.note(kind, name)

    def labels(self, name: str, data: bytes) -> None:
        """A map of class numbers; `purpose` is in its name."""
        stored = stored_picture(data, name, self.packing.max_pixels)
        read_labels(stored.data, self.packing.max_pixels)
        self._lies(upright_size(stored.image), read_turn(stored.image))
        purpose = name.rpartition(".")[0].rpartition(".")[2].lower()
        self.fields[f"{purpose}.png"] = stored.data

    def caption(self, name: str, data: bytes) -> None:
        """A caption; bytes that are good as they are stay so."""
        self.fields["txt"] = _utf8(data, self.packing.encoding)
        parse_caption(self.fields, _MAX_CAPTION_BYTES)

    def instruction(self, name: str, data: bytes) -> None:
        """The text of a pair, which stands for the caption; bytes that are good as they are stay so."""
        self.fields["instruction.txt"] = _utf8(data, self.packing.encoding)
        parse_caption(self.fields, _MAX_CAPTION_BYTES)

    def number(self, name: str, data: bytes) -> None:
        """A class number."""
        self.fields["cls"] = _utf8(data, self.packing.encoding)
        parse_label(self.fields)

    def json(self, name: str, data: bytes) -> None:
        """Annotations, or what else a json says, joined by columns of a table."""
        content, found = read_json({"json": data}), parse_annotations(data)
        check_runs(found)
        for one in found.objects:
            if isinstance(one.shape, RunLengths):
                self._lies((one.shape.width, one.shape.height))
            else:
                self._lies((found.width or self.frame[0], found.height or self.frame[1]))
        for reason in dict.fromkeys(found.left_out):
            self.note(f"with {reason}, left out", name)
        if not found.objects and not parse_caption({"json": data}, _MAX_CAPTION_BYTES):
            self.note(UNKNOWN, name)
        copy = content.pop("imageData", None)  # LabelMe's of the very photo
        more = json.loads(self.fields.get("json", b"{}"))
        self.fields["json"] = data if copy is None and not more else json.dumps({**content, **more}).encode()

    def sample(self) -> PackedSample:
        """All that was read, the image shrunk if it has to be."""
        assert self.stored is not None
        image = _shrunk(self.stored, self.packing.resize, upright_too=not self.turned)
        if image is not self.stored.data and "json" in self.fields:
            self.fields["json"] = _sized_json(self.fields["json"], self.frame)
        self.fields[self.stored.suffix] = image
        for name, picture in (("target", self.wanted), ("reference", self.further)):
            if picture is not None:
                self.fields[f"{name}.{picture.suffix}"] = _shrunk(picture, self.packing.resize, upright_too=True)
        size = self.frame if image is self.stored.data else image_size(image)
        sample = EncodedSample(self.source.key, self.fields, size)
        captions = ("captions",) if parse_caption(self.fields, _MAX_CAPTION_BYTES) else ()  # it may be in the json
        found = (*captions, *(kind for kind in kinds_of(self.fields) if kind not in captions))
        return PackedSample(sample, found, tuple(self.notes))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _utf8(data: bytes, encoding: str) -> bytes:
    """The bytes themselves if they are UTF-8 without a mark or NULs, else their text in it."""
    try:
        text = decode_text(data, encoding).encode()
    except ValueError as error:
        raise ValueError(f"{error}; --caption-encoding names another, such as latin-1 or utf-16-le") from error
    return data if data == text else text


def _shrunk(stored: StoredPicture, resize: Resize, *, upright_too: bool) -> bytes:
    """The picture's file; encoded anew in RGB, only if it has to shrink.

    It is made upright then, unless what was drawn on the stored pixels needs its rotation, which is kept.
    """
    scale = resize.scale(*stored.image.size)
    if scale == 1.0:
        return stored.data
    exif = Image.Exif()
    if not upright_too:
        exif[ORIENTATION] = stored.image.getexif()[ORIENTATION]
    image = to_rgb(upright(stored.image) if upright_too else stored.image)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    file, more = io.BytesIO(), {} if upright_too else {"exif": exif}
    image = image.resize(size, Image.Resampling.LANCZOS)
    image.save(file, _FORMATS[stored.suffix], quality=resize.quality, **more)
    return file.getvalue()


def _sized_json(data: bytes, size: tuple[int, int]) -> bytes:
    """Add the width and height to which polygons refer, unless the json says them itself."""
    content = {name: value for name, value in json.loads(data).items() if value is not None}
    if "imageWidth" in content and "imageHeight" in content:
        return json.dumps(content).encode()
    return json.dumps({"width": size[0], "height": size[1], **content}).encode()


def read_source(source: Source, packing: Packing) -> PackedSample:
    """The sample of one source; a shrunk image's json learns the size that it was written for.

    Raises:
        ValueError: naming the very file, and its row in a table, if the image or what lies beside it cannot be used.
    """
    reader = _Reader(source, packing)
    reader.read(source.path, reader.image)
    reader.fields |= dict(source.given)
    uses = {"mask": reader.mask, "label": reader.labels, "seg": reader.labels, "json": reader.json}
    uses |= {"txt": reader.caption, "cls": reader.number, "target": reader.target}
    uses |= {"instruction": reader.instruction, "reference": reader.reference}
    for purpose, place in source.beside:
        if not {purpose, f"{purpose}.txt"} & reader.fields.keys() or purpose == "json":
            reader.read(place, uses[purpose])
    with _naming(str(source)):
        return reader.sample()


def try_source(source: Source, packing: Packing) -> PackedSample | str:
    """`read_source`, or the reason why the source cannot be used: for worker processes."""
    try:
        return read_source(source, packing)
    except ValueError as error:
        return str(error)
