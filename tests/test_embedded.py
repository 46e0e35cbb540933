"""Names of what ships with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from inpaint_module.embedded import local_folder


def test_names() -> None:
    assert (Path(local_folder("embedded:vae")) / "config.json").is_file()
    assert local_folder("some/model") == "some/model"
    with pytest.raises(ValueError, match=r"expected one of .*embedded:vae.*, got 'embedded:other'"):
        local_folder("embedded:other")
