"""Names of what ships with the package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import inpaint_module
from inpaint_module.weights import local_folder


def test_names() -> None:
    assert (Path(local_folder("embedded:vae")) / "config.json").is_file()
    assert local_folder("some/model") == "some/model"
    with pytest.raises(ValueError, match=r"expected one of .*embedded:vae.*, got 'embedded:other'"):
        local_folder("embedded:other")


def test_the_folder_alone_works(tmp_path: Path) -> None:
    """As ComfyUI gets it: `inpaint_module` without `datamodules` beside it."""
    package = Path(inpaint_module.__file__).parent
    shutil.copytree(package, tmp_path / "inpaint_module", ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        "import sys; sys.path.insert(0, '.'); sys.modules['datamodules'] = None\n"
        "import torch, inpaint_module\n"
        "from inpaint_module.masks.gallery import load_photos\n"
        "encoder = inpaint_module.InpaintEncoder(inpaint_module.load_vae('embedded:vae'))\n"
        "latents = encoder(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.ones(1, 1, 16, 16, dtype=torch.bool))\n"
        "print(inpaint_module.__file__, tuple(latents.samples.shape), len(load_photos()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == f"{tmp_path / 'inpaint_module' / '__init__.py'} (1, 16, 2, 2) 4\n", done.stderr
