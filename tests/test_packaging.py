"""What the wheel would hold, read from pyproject.toml: all packages and their data, and nothing else."""

from __future__ import annotations

import re
import runpy
import tomllib
from glob import glob
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
SOURCES = ("inpaint_module", "datamodules", "configs")
TEXTS = [path for name in SOURCES for path in (ROOT / name).rglob("*.py")] + [ROOT / "README.md"]


def setup() -> dict[str, Any]:
    """What setup.py gives to setuptools."""
    with mock.patch("setuptools.setup") as given:
        runpy.run_path(str(ROOT / "setup.py"))
    return given.call_args.kwargs


def is_shipped_data(path: Path) -> bool:
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = ROOT / setup()["package_dir"].get(package, package)
        if path in {folder / name for pattern in patterns for name in glob(pattern, root_dir=folder, recursive=True)}:
            return True
    return False


def test_every_folder_of_modules_is_a_package_that_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folders = {path.parent.relative_to(ROOT) for name in SOURCES for path in (ROOT / name).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} | {"inpaint_module.configs"} == set(setup()["packages"])


def test_nothing_is_importable_by_a_name_that_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert {name.partition(".")[0] for name in setup()["packages"]} == {"inpaint_module", "datamodules"}
    assert "py-modules" not in SETUPTOOLS
    assert PROJECT["project"]["scripts"] == {"inpaint": "inpaint_module.cli:main"}


@pytest.mark.parametrize("folder", SOURCES)
def test_every_data_file_ships(folder: str) -> None:
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    data = [path for path in files if path.suffix != ".py"]
    assert data
    assert [str(path) for path in data if not is_shipped_data(path)] == []


def test_types_and_licences_ship() -> None:
    for package in ("inpaint_module", "datamodules"):
        assert is_shipped_data(ROOT / package / "py.typed")
    assert is_shipped_data(ROOT / "datamodules" / "assets" / "CREDITS.csv")
    for name in [*PROJECT["project"]["license-files"], PROJECT["project"]["readme"]]:
        assert (ROOT / name).is_file()


def test_each_extra_is_named_where_it_is_needed() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    known = {"text", "remote", "metrics", "loggers", "parquet", "heic", "lowmem", "torchao", "app", "dev"}
    assert set(extras) == known
    named = set(re.findall(r"inpaint-module\[(\w+)\]", "\n".join(path.read_text() for path in TEXTS)))
    assert named <= set(extras)
