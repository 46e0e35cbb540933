"""Models that ship with the package: embedded:vae, a small autoencoder, and embedded:inpainter, a small denoiser."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
_SCHEME = "embedded:"
_MODELS = ("inpainter", "vae")


def local_folder(path: str) -> str:
    """`embedded:NAME` -> its folder; any other path or hub name as it is.

    Raises:
        ValueError: nothing of that name ships with the package.
    """
    if not path.startswith(_SCHEME):
        return path
    name = path.removeprefix(_SCHEME)
    if name not in _MODELS:
        raise ValueError(f"expected one of {', '.join(_SCHEME + each for each in _MODELS)}, got {path!r}")
    return str(ASSETS / name)
