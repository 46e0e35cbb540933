"""Pictures that training does not open -> PNG, without loss; a picture of any format with a fill put into it.

Training opens JPEG, PNG and WEBP alone (`reading.FORMATS`), so that no other codec ever meets a file from a shard. What
else a folder holds is converted once, when it is packed, by Pillow's decoders named here: none of them runs another
program, as EPS would.
"""

from __future__ import annotations

import io
import warnings
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from datamodules.decode.codecs import UnusableProfile, colour_mode, from_srgb, profile_fault, profile_of, to_srgb
from datamodules.decode.reading import FORMATS, has_alpha, is_animated, open_image, to_rgb, upright

HEIC_ADVICE = "pip install 'inpaint-module[heic]' reads it"
CMYK = "in CMYK: read as sRGB"
DEEP = "in colour of 16 bits: the upper 8 are read"
ONE_WAY = "with a colour profile for reading only: converted to sRGB"
ORIENTATION = 0x0112  # the EXIF tag
_TRAINED = {"jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "jif": "JPEG", "mpo": "JPEG"}
_TRAINED |= {"png": "PNG", "apng": "PNG", "webp": "WEBP"}
_CONVERTED = {"tif": "TIFF", "tiff": "TIFF", "bmp": "BMP", "dib": "DIB", "gif": "GIF", "avif": "AVIF", "avifs": "AVIF"}
_CONVERTED |= {"heic": "HEIF", "heif": "HEIF", "hif": "HEIF", "heics": "HEIF", "psd": "PSD", "qoi": "QOI"}
_CONVERTED |= dict.fromkeys(("jp2", "j2k", "j2c", "jpc", "jpf", "jpx"), "JPEG2000")
_CONVERTED |= dict.fromkeys(("ppm", "pgm", "pbm", "pnm"), "PPM") | dict.fromkeys(("sgi", "rgb", "rgba", "bw"), "SGI")
_CONVERTED |= {"tga": "TGA", "pcx": "PCX", "ico": "ICO", "icns": "ICNS", "dds": "DDS"}
_BY_CONTENT = ("TIFF", "BMP", "GIF", "AVIF", "HEIF", "JPEG2000", "QOI", "PSD")  # whose files begin with a clear mark
_STORED = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_UNREAD = {"jxl", "exr", "hdr", "pfm", "fits", "svg", "svgz", "eps", "ps", "ai", "wmf", "emf", "xcf", "kra", "cur"}
_UNREAD |= {"dng", "cr2", "cr3", "crw", "nef", "nrw", "arw", "sr2", "raf", "orf", "rw2", "pef", "srw", "x3f", "raw"}
_COLOUR_CHUNKS = (b"gAMA", b"cHRM", b"cICP", b"sRGB")
_TURNED_BACK = {  # undoes what the EXIF tag asks for
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


class StoredPicture(NamedTuple):
    """A picture as it goes into a shard.

    Attributes:
        suffix: jpg, jpeg, png or webp.
        data: the file.
        notes: kinds of an account.
        image: the file opened, without the EXIF rotation applied.
    """

    suffix: str
    data: bytes
    notes: tuple[str, ...]
    image: Image.Image


def suffix_of(name: str) -> str:
    """`a.B.JPG` -> `jpg`; "" if there is none."""
    return name.rpartition(".")[2].lower() if "." in name.lstrip(".") else ""


def is_picture(name: str) -> bool:
    """Whether a file is a picture that can be read, by its name."""
    format = _CONVERTED.get(suffix_of(name))
    return suffix_of(name) in _TRAINED or (format is not None and format in _decoders())


def why_unread(name: str) -> str | None:
    """Why a picture is not read, as a kind of an account; None for what can be read, and for what is no picture."""
    suffix = suffix_of(name)
    if is_picture(name) or suffix not in _CONVERTED.keys() | _UNREAD:
        return None
    if _CONVERTED.get(suffix) == "HEIF":
        return f"in HEIC ({HEIC_ADVICE})"
    if suffix in _CONVERTED:
        return f"in {_CONVERTED[suffix]}, which this Pillow does not read (save it as PNG or JPEG)"
    return f"a .{suffix} picture, which is not read (save it as PNG or JPEG)"


@lru_cache(maxsize=1)
def _decoders() -> frozenset[str]:
    """The formats that Pillow can open here, HEIC's among them if pillow-heif is installed."""
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    Image.init()
    return frozenset(name for name in {*FORMATS, *_CONVERTED.values()} if name in Image.OPEN)


def stored_picture(data: bytes, name: str, max_pixels: int) -> StoredPicture:
    """A picture that decodes, as training opens it: JPEG, PNG and WEBP byte for byte, all others as a PNG.

    The file's content says what it is; its name is believed only where a format has no mark of its own. The first of
    several pictures in a file is taken. 16-bit grey stays so, a colour profile is kept, and so is the EXIF rotation.

    Raises:
        ValueError: if it is none of these, damaged, or of more than `max_pixels` pixels.
    """
    suffix, formats = suffix_of(name), _decoders()
    try:
        image = open_image(data, max_pixels)
    except UnidentifiedImageError:
        named = _CONVERTED.get(suffix)
        chosen = [each for each in (*([named] if named else []), *_BY_CONTENT) if each in formats]
        return _converted(data, chosen, max_pixels)
    deep = _is_deep(image)
    image.load()
    suffix = suffix if suffix in ("jpg", "jpeg", "png", "webp") else _STORED[image.format or "PNG"]
    return StoredPicture(suffix, data, _notes(image, is_animated(image), deep), image)


def _is_deep(image: Image.Image) -> bool:
    """Whether a picture that is not decoded yet has colours of 16 bits, which Pillow cuts down."""
    return ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I")


def _notes(image: Image.Image, several: bool, deep: bool, converted: bool = False) -> tuple[str, ...]:
    fault = image.mode != "LAB" and profile_fault(image)
    kinds = (
        ("animated or of several pages: the first picture is taken", several),
        ("with a colour profile that cannot be used: its numbers are taken for sRGB", fault),
        (CMYK, image.mode == "CMYK"),
        (DEEP, deep),
        ("converted to PNG", converted),
    )
    return tuple(kind for kind, true in kinds if true)


def _open_other(data: bytes, formats: list[str], max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        heic = data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heif")
        found = f"; it is a HEIC picture, {HEIC_ADVICE}" if heic else ""
        raise ValueError(f"cannot be read as a picture{found}") from error
    if not 0 < image.width * image.height <= max_pixels:
        raise ValueError(f"expected 1 to {max_pixels} pixels, got {image.width} x {image.height}")
    return image


def _converted(data: bytes, formats: list[str], max_pixels: int) -> StoredPicture:
    image = _open_other(data, formats, max_pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unknown tags, such as TIFFs have
        orientation, deep = image.getexif().get(ORIENTATION, 1), _is_deep(image)
        image.load()
        if orientation in _TURNED_BACK and image.getexif().get(ORIENTATION, 1) != orientation:
            pixels = image.transpose(_TURNED_BACK[orientation])  # Pillow has turned it already, as it does TIFFs
        else:
            pixels = image.copy()
        several = image.format in ("GIF", "TIFF", "AVIF") and getattr(image, "is_animated", False)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file, turned = io.BytesIO(), orientation in _TURNED_BACK
    profile = profile_of(image) if image.mode not in ("CMYK", "LAB") else None  # which PNG has not: they become sRGB
    pixels = _as_png_has(pixels) if image.mode != "CMYK" else to_srgb(pixels, profile_of(image))
    pixels.save(file, "PNG", icc_profile=profile, exif=exif if turned else None)
    opened = open_image(file.getvalue(), max_pixels)
    return StoredPicture("png", file.getvalue(), _notes(image, several, deep, converted=True), opened)


def _as_png_has(image: Image.Image) -> Image.Image:
    """The same pixels in a mode that a PNG can hold."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"expected grey values 0 to 65535, got {grey.min()} to {grey.max()}")
        return Image.fromarray(grey.astype(np.uint16))
    if image.mode == "F":
        raise ValueError("expected whole numbers as pixels, got floating-point ones; save it with 8 or 16 bits")
    if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        return image
    return image.convert({"PA": "RGBA", "RGBa": "RGBA", "La": "LA"}.get(image.mode, "RGB"))


class GivenPicture(NamedTuple):
    """A picture, upright.

    Attributes:
        image: its pixels as the file has them, of mode L, LA, RGB, RGBA or I;16.
        rgb: the same as training reads it, uint8 (H, W, 3) in sRGB, transparency on white.
        profile: the file's colour profile.
        chunks: what else a PNG says of its colours, name and content.
        transparent: the grey of 16 bits that is transparent.
        notes: kinds of an account.
    """

    image: Image.Image
    rgb: np.ndarray
    profile: bytes | None
    chunks: tuple[tuple[bytes, bytes], ...]
    transparent: int | None
    notes: tuple[str, ...]


def read_given(path: Path, max_pixels: int) -> GivenPicture:
    """A picture of any format that packing takes.

    Raises:
        ValueError: naming the file.
    """
    try:
        return _as_given(path.read_bytes(), path.name, max_pixels)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or 'cannot be read as a picture'}") from error
    except Exception as error:  # Pillow raises many kinds on damaged files, SyntaxError among them
        raise ValueError(f"{path}: {error}") from error


def _as_given(data: bytes, name: str, max_pixels: int) -> GivenPicture:
    stored = stored_picture(data, name, max_pixels)
    image = upright(stored.image)
    profile, notes = profile_of(image), stored.notes
    rgb = np.array(to_rgb(image))
    if image.mode == "CMYK" or _is_one_way(image):
        notes += () if CMYK in notes else (ONE_WAY,)
        return GivenPicture(_in_srgb(image), rgb, None, (), None, notes)
    key = image.info.get("transparency") if image.mode.startswith("I") else None
    return GivenPicture(_as_it_is(image), rgb, profile, _colour_chunks(stored.data), key, notes)


def _is_one_way(image: Image.Image) -> bool:
    try:
        from_srgb(Image.new("RGB", (1, 1)), profile_of(image), colour_mode(image))
    except UnusableProfile:
        return True
    return False


def _in_srgb(image: Image.Image) -> Image.Image:
    colours = to_rgb(image, None)
    if has_alpha(image):
        colours.putalpha(image.convert("RGBA").getchannel("A"))
    return colours


def _as_it_is(image: Image.Image) -> Image.Image:
    """The same pixels in a mode that holds any fill."""
    if image.mode.startswith("I"):
        return Image.fromarray(np.asarray(image).astype(np.uint16))
    mode = colour_mode(image) + "A" * has_alpha(image)
    return image if image.mode == mode else image.convert(mode)


def _colour_chunks(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    found, place = [], 8
    while data.startswith(b"\x89PNG") and (name := data[place + 4 : place + 8]) not in (b"IDAT", b""):
        length = int.from_bytes(data[place : place + 4])
        if name in _COLOUR_CHUNKS:
            found.append((name, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return tuple(found)


def filled(given: GivenPicture, fill: np.ndarray, mask: np.ndarray) -> Image.Image:
    """The picture with a fill where the mask is; all other pixels have the bits of the file.

    Args:
        given: of `read_given`.
        fill: uint8 (H, W, 3) in sRGB.
        mask: bool (H, W); what it hides becomes opaque.
    """
    pixels = np.array(given.image)
    if mask.any():
        mode = "RGB" if given.image.mode.startswith("RGB") else "L"
        colours = np.asarray(from_srgb(Image.fromarray(fill), given.profile, mode))[mask]
        if pixels.dtype == np.uint16:
            levels = colours.astype(np.uint16) * 257
            pixels[mask] = np.where(levels == given.transparent, levels ^ 1, levels)
        elif given.image.mode in ("L", "RGB"):
            pixels[mask] = colours
        else:
            pixels[mask] = np.column_stack([colours, np.full(len(colours), 255, np.uint8)])
    return Image.fromarray(pixels)


def write_png(file: BinaryIO, image: Image.Image, given: GivenPicture, maker: str) -> None:
    """Write a filled picture with what its file said of its colours; `maker` goes into the text chunk `Software`."""
    words = PngImagePlugin.PngInfo()
    words.add_text("Software", maker)
    for name, content in given.chunks:
        words.add(name, content)
    more = {} if given.transparent is None else {"transparency": given.transparent}
    image.save(file, "PNG", icc_profile=given.profile, pnginfo=words, **more)
