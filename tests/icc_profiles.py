"""Colour profiles made from numbers, for the tests: ICC version 4, of matrix and curve, or of a grey curve."""

from __future__ import annotations

import struct

D50 = (0.9642, 1.0, 0.82491)
# columns of the primaries' XYZ under D50, as Display P3, Adobe RGB (1998) and sRGB publish them
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))

Primaries = tuple[tuple[float, float, float], ...]


def _numbers(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _text(text: str) -> bytes:
    data = text.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">IIHHII", 1, 12, 0x656E, 0x5553, len(data), 28) + data


def gamma(exponent: float) -> bytes:
    """The curve x ** exponent."""
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(exponent * 256))


def srgb_curve() -> bytes:
    """That of sRGB and Display P3, in closed form."""
    return b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + _numbers(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def make_profile(
    name: str, primaries: Primaries | None, curve: bytes, space: bytes = b"RGB ", to_lab: bytes = b""
) -> bytes:
    """A profile for monitors; without primaries a grey one, or of a table.

    Args:
        name: what it calls itself.
        primaries: red, green and blue.
        curve: from the numbers to light.
        space: the colour space that its header claims.
        to_lab: a table from the numbers to CIE Lab, of a profile of version 2.
    """
    tags = [(b"desc", _text(name)), (b"cprt", _text("CC0")), (b"wtpt", b"XYZ \0\0\0\0" + _numbers(*D50))]
    for letter, colour in zip((b"r", b"g", b"b"), primaries or (), strict=False):
        tags += [(letter + b"XYZ", b"XYZ \0\0\0\0" + _numbers(*colour)), (letter + b"TRC", curve)]
    tags += [] if primaries else [(b"A2B0", to_lab) if to_lab else (b"kTRC", curve)]
    begin, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for tag, data in tags:
        table += tag + struct.pack(">II", begin + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    version, between = (0x02400000, b"Lab ") if to_lab else (0x04300000, b"XYZ ")
    head = struct.pack(">I4xI4s4s4s6H4s", begin + len(body), version, b"mntr", space, between, *[1] * 6, b"acsp")
    return head.ljust(68, b"\0") + _numbers(*D50) + bytes(48) + table + body


def display_p3() -> bytes:
    """What phones and Macs put into their photos."""
    return make_profile("Display P3", P3, srgb_curve())


def adobe_rgb() -> bytes:
    """What cameras may be set to."""
    return make_profile("Adobe RGB (1998)", ADOBE, gamma(563 / 256))


def srgb() -> bytes:
    """sRGB by another program's numbers."""
    return make_profile("sRGB", SRGB, srgb_curve())


def grey(exponent: float) -> bytes:
    """A grey profile, as of scanners."""
    return make_profile("Grey", None, gamma(exponent), b"GRAY")


def cmyk(channels: int = 4) -> bytes:
    """A table: the first ink alone is CIE Lab (50, 60, 30), the last alone goes from L = 100 to 0, others are black.

    Only to Lab, so that there is no way back. Of 3 channels it is one for RGB.
    """
    cells = {0: (255, 128, 128), 1 << (channels - 1): (128, 188, 158)}  # the first ink is the highest bit
    grid = b"".join(bytes(cells.get(inks, (0, 128, 128))) for inks in range(1 << channels))
    straight = bytes(range(256))
    head = b"mft1\0\0\0\0" + bytes([channels, 3, 2, 0]) + _numbers(1, 0, 0, 0, 1, 0, 0, 0, 1)
    space = {3: b"RGB ", 4: b"CMYK"}[channels]
    return make_profile("Inks", None, b"", space, head + straight * channels + grid + straight * 3)
