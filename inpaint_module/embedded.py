"""Where models come from: a folder, those that ship with the package, or the hub."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
_SCHEME = "embedded:"
_MODELS = ("inpainter", "vae")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
_SECONDS = 5.0  # to reach the hub


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


def loading_options(path: str, what: str) -> dict[str, Any]:
    """How diffusers and transformers are to load from a path: from the hub's cache alone if the hub is out of reach.

    Without this they try again and again for more than a minute, and then name a file that is not there.

    Args:
        path: a folder, or a name on the hub.
        what: is loaded, for the error: "VAE".

    Raises:
        ValueError: neither a folder here nor a name that the hub could have; or the hub cannot be reached and nothing
            of this name has been downloaded before.
    """
    if Path(path).is_dir():
        return {}
    expected = f"{what}: expected a folder, or a name on the hub such as org/model, got {path!r}"
    if not _HUB_NAME.fullmatch(path):
        raise ValueError(f"{expected}: there is no such folder")
    if not (reason := _hub_is_out_of_reach()):
        return {}
    if not _is_downloaded(path):
        raise ValueError(
            f"{expected}: there is no such folder here, it has not been downloaded before, and the hub cannot be "
            f"reached ({reason})"
        )
    return {"local_files_only": True}


@cache
def _hub_is_out_of_reach() -> str:
    """Why, or an empty text if it answers; asked once."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as error:  # which kind, depends on the client that this version of huggingface_hub uses
        return str(error)
    return ""


def _is_downloaded(name: str) -> bool:
    """Whether the hub's cache has something of a model."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")).is_dir()
