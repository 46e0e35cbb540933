"""The size of an image from its header, for the index."""

from __future__ import annotations

import warnings

from PIL import Image

from datamodules.images.reading import open_image, upright_size

_MAX_PIXELS = 1 << 40  # too large for training is for the reader to say
_PNG_ROTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # where Pillow finds a PNG's rotation


def image_size(data: bytes) -> tuple[int, int]:
    """Upright width and height in pixels of a JPEG, PNG or WEBP, whose pixels are not decoded; (0, 0) if it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = open_image(data, _MAX_PIXELS)
            if image.format == "PNG" and not any(mark in data for mark in _PNG_ROTATION):
                return image.size  # upright_size would decode all of a PNG to look for EXIF after its pixels
            return upright_size(image)
    except Exception:  # Pillow raises many kinds on damaged files, SyntaxError among them
        return 0, 0
