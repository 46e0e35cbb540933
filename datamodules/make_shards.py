"""Make webdataset shards from a folder of images: python -m datamodules.make_shards photos data/train

Beside an image NAME.jpg (or png, webp) may lie its caption NAME.txt, its mask NAME.mask.png (or webp, jpg; white =
inpaint), class numbers NAME.label.png or NAME.seg.png, and NAME.json with COCO annotations. The same input gives the
same bytes: sorted keys, no times, no owners.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps
from tqdm import tqdm

from datamodules.images import open_image, to_rgb, upright_size
from datamodules.manifest import MANIFEST, Shard, write_manifest
from datamodules.mask_sources import read_labels
from datamodules.samples import parse_caption
from datamodules.shard_writer import ShardWriter
from datamodules.tar_index import IMAGE_FIELDS, LABEL_FIELDS, MASK_FIELDS

_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


class Source(NamedTuple):
    """One image on disk and the key that it will have."""

    key: str
    path: Path


class Report(NamedTuple):
    """What was written, and the images left out with `skip_bad`, each with its reason."""

    shards: list[Shard]
    skipped: list[str]


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


def is_image(path: Path) -> bool:
    """An image by its name; masks and label maps are not."""
    name = path.name.lower()
    return name.endswith(tuple(f".{field}" for field in IMAGE_FIELDS)) and not name.endswith(
        tuple(f".{field}" for field in MASK_FIELDS + LABEL_FIELDS)
    )


def make_key(path: str) -> str:
    """`my photos/a.b.JPG` -> `my_photos/a_b`: what a shard allows, without the dots that would end the key."""
    parts = [part for part in Path(path).with_suffix("").parts if part not in ("..", ".", os.sep)]
    return "/".join(re.sub(r"[^A-Za-z0-9_-]", "_", part) for part in parts)


def find_images(source: str | Path) -> list[Source]:
    """The images under a folder, or those that a text file lists (one path a line, relative to it), by key.

    Raises:
        ValueError: if there are none, or if two would have the same key.
    """
    source = Path(source)
    if source.is_dir():
        names = [str(path.relative_to(source)) for path in source.rglob("*") if is_image(path)]
        folder = source
    elif source.is_file():
        names = [line.strip() for line in source.read_text().splitlines() if line.strip()]
        folder = source.parent
        if other := [name for name in names if not is_image(Path(name))]:
            raise ValueError(f"{source}: expected names of images ({', '.join(IMAGE_FIELDS)}), got {other[:3]}")
    else:
        raise ValueError(f"{source}: expected a folder of images or a text file that lists them, found neither")
    images: dict[str, Path] = {}
    for name in sorted(names):
        if make_key(name) in images:
            raise ValueError(f"{folder / name}: same key as {images[make_key(name)]}: {make_key(name)!r}; rename one")
        images[make_key(name)] = folder / name
    if not images:
        raise ValueError(f"{source}: no images ({', '.join(IMAGE_FIELDS)}) there")
    return [Source(key, images[key]) for key in sorted(images)]


def _image_bytes(data: bytes, field: str, resize: Resize, max_pixels: int) -> bytes:
    """Check that an image decodes; re-encode it, upright and in RGB, only if it has to shrink."""
    image = open_image(data, max_pixels)
    image.load()
    scale = resize.scale(*image.size)
    if scale == 1.0:
        return data
    image = to_rgb(ImageOps.exif_transpose(image))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, _FORMATS[field], quality=resize.quality)
    return file.getvalue()


def _sized_json(data: bytes, size: tuple[int, int]) -> bytes:
    """Add the width and height to which polygons refer, unless the json says them itself."""
    return json.dumps({"width": size[0], "height": size[1], **json.loads(data)}).encode()


def _check_beside(fields: dict[str, bytes], max_pixels: int) -> None:
    """Decode what lies beside an image."""
    for name in MASK_FIELDS:
        if name in fields:
            open_image(fields[name], max_pixels).load()
    for name in LABEL_FIELDS:
        if name in fields:
            read_labels(fields[name], max_pixels)
    parse_caption(fields, 1 << 20)
    if "json" in fields and not isinstance(json.loads(fields["json"]), dict):
        raise ValueError("expected an object in json")


def read_source(source: Source, resize: Resize, max_pixels: int) -> dict[str, bytes]:
    """The fields of one sample; a shrunk image's json learns the size that it was written for.

    Raises:
        ValueError: naming the file, if the image or what lies beside it cannot be used.
    """
    field = source.path.suffix[1:].lower()
    beside = {name: source.path.with_suffix(f".{name}") for name in (*MASK_FIELDS, *LABEL_FIELDS, "txt", "json")}
    try:
        fields = {name: path.read_bytes() for name, path in beside.items() if path.exists()}
        _check_beside(fields, max_pixels)
        data = source.path.read_bytes()
        image = _image_bytes(data, field, resize, max_pixels)
        if "json" in fields and image is not data:
            fields["json"] = _sized_json(fields["json"], upright_size(open_image(data, max_pixels)))
        return {field: image, **fields}
    except Exception as error:  # Pillow raises many kinds on damaged files, SyntaxError among them
        raise ValueError(f"{source.path}: {error}") from error


def _samples(
    sources: Iterable[Source], resize: Resize, max_pixels: int, bad: list[str]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and fields of every good source; the reasons of the others go to `bad`."""
    for source in sources:
        try:
            yield source.key, read_source(source, resize, max_pixels)
        except ValueError as error:
            bad.append(str(error))


def make_shards(
    source: str | Path,
    out: str | Path,
    *,
    shard_bytes: int = 256_000_000,
    samples_per_shard: int | None = None,
    resize: Resize = Resize(),  # noqa: B008, immutable
    max_pixels: int = 50_000_000,
    skip_bad: bool = False,
    progress: bool = False,
) -> Report:
    """Write the images of a folder or a list into shards, with manifest and index.

    Args:
        source: a folder, searched with its subfolders, or a text file with one path a line.
        out: a folder without shards; made if missing.
        shard_bytes: size of a tar, about.
        samples_per_shard: at most so many samples a tar.
        resize: shrink larger images; without it their bytes are copied unchanged.
        max_pixels: refuse larger images.
        skip_bad: leave unusable images out and report them, instead of refusing all.
        progress: show a progress bar.

    Raises:
        ValueError: if `out` has shards already, or naming every image that cannot be used.
    """
    out = Path(out)
    if (out / MANIFEST).exists() or any(out.glob("*.tar")):
        raise ValueError(f"{out}: expected a folder without shards, got one that has some; remove them first")
    sources = find_images(source)
    bad: list[str] = []
    out.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(out, shard_bytes, samples_per_shard)
    for key, fields in _samples(tqdm(sources, unit="image", disable=not progress), resize, max_pixels, bad):
        if not bad or skip_bad:
            writer.write(key, fields)
    if (bad and not skip_bad) or not writer.paths:
        writer.discard()
        raise ValueError(f"{len(bad)} of {len(sources)} images cannot be used:\n" + "\n".join(bad))
    writer.publish()
    return Report(write_manifest(out), bad)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.make_shards", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", help="folder of images (with its subfolders), or a text file with one path a line")
    parser.add_argument("out", help="folder for the shards; must hold none")
    parser.add_argument("--shard-bytes", type=int, default=256_000_000, help="size of a tar (default %(default)s)")
    parser.add_argument("--samples-per-shard", type=int, help="at most so many samples a tar")
    parser.add_argument("--short-side", type=int, help="shrink to this short side, in pixels (never enlarges)")
    parser.add_argument("--max-side", type=int, help="shrink to this longest side, in pixels")
    parser.add_argument("--quality", type=int, default=92, help="of shrunk JPEG and WEBP (default %(default)s)")
    parser.add_argument("--max-pixels", type=int, default=50_000_000, help="refuse larger (default %(default)s)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be used")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    resize = Resize(options.pop("short_side"), options.pop("max_side"), options.pop("quality"))
    try:
        report = make_shards(**options, resize=resize, progress=True)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for reason in report.skipped:
        sys.stderr.write(f"skipped: {reason}\n")
    total = sum(shard.count for shard in report.shards)
    sys.stdout.write(f"{total} samples in {len(report.shards)} shards, {len(report.skipped)} skipped\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
