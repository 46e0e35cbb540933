"""The public names, and the page that lists them: python tests/test_api.py writes inpaint_module/API.md anew."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import inpaint_module

PAGE = Path(inpaint_module.__file__).parent / "API.md"
FOR_COMFYUI = [name for name in inpaint_module.__all__ if name.startswith("NODE_")]
NAMES = [name for name in inpaint_module.__all__ if name not in FOR_COMFYUI]


def sentence(name: str) -> str:
    """The first of a docstring."""
    first = " ".join((inspect.getdoc(getattr(inpaint_module, name)) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", first)[0]


def line(name: str) -> str:
    home = inpaint_module._HOMES[name]
    return f"- `{name}` (`{home}`): {sentence(name)}"


def api_page() -> str:
    """What API.md should say."""
    head = (
        "# Public names\n\n`from inpaint_module import NAME`; each is imported when it is first asked for. In brackets "
        "its module, whose\ndocstrings say the rest. Written by `python tests/test_api.py`, which fails as a test if "
        "this page is not current.\n\n"
    )
    mappings = " and ".join(f"`{name}`" for name in FOR_COMFYUI)
    last = f"- {mappings} (`comfyui`): what ComfyUI looks for in a folder of `custom_nodes`."
    return head + "\n".join([*map(line, NAMES), last]) + "\n"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == api_page(), "write it anew: python tests/test_api.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_what_it_is(name: str) -> None:
    said = sentence(name)
    assert said.endswith((".", ":")) or len(said.split()) > 3, said
    assert 10 < len(said) < 240, said
    thing = getattr(inpaint_module, name)
    assert f"{thing.__module__}.".startswith(f"inpaint_module.{inpaint_module._HOMES[name].partition('.')[0]}.")


def test_they_are_about_25_and_imported_when_asked_for() -> None:
    assert 20 <= len(NAMES) <= 30
    assert set(inpaint_module.__all__) == set(inpaint_module._HOMES) <= set(dir(inpaint_module))
    with pytest.raises(AttributeError, match="module 'inpaint_module' has no attribute 'Encoder'"):
        inpaint_module.Encoder  # noqa: B018
    code = "import sys, inpaint_module; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


if __name__ == "__main__":
    PAGE.write_text(api_page())
