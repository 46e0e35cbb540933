"""What ships with the package: embedded:vae, a small autoencoder, and embedded:inpainter, a small denoiser over it."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "datamodules" / "embedded"
_SCHEME = "embedded:"


def local_folder(path: str) -> str:
    """`embedded:NAME` -> its folder; any other path or hub name as it is.

    Raises:
        ValueError: nothing of that name ships with the package.
    """
    if not path.startswith(_SCHEME):
        return path
    folder = _FOLDER / path.removeprefix(_SCHEME)
    if not folder.is_dir():
        raise ValueError(
            f"expected one of {', '.join(sorted(_SCHEME + each.name for each in _models()))}, got {path!r}"
        )
    return str(folder)


def _models() -> list[Path]:
    return [each for each in _FOLDER.iterdir() if each.is_dir() and not (each / "manifest.json").exists()]
