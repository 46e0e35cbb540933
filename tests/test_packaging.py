"""What the wheel would hold, read from pyproject.toml: all packages and their data, and nothing else."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from glob import glob
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
SOURCES = ("inpaint_module", "datamodules", "configs")
TEXTS = [path for name in SOURCES for path in (ROOT / name).rglob("*.py")] + [ROOT / "README.md"]


def shipped_packages() -> set[str]:
    """As setuptools finds them: folders with __init__.py whose parents have one, of names that `include` matches."""
    find = SETUPTOOLS["packages"]["find"]
    assert find["namespaces"] is False
    found = set()
    for path in [each for name in [*SOURCES, "tests"] for each in (ROOT / name).rglob("__init__.py")]:
        parts = path.parent.relative_to(ROOT).parts
        whole = all((ROOT / Path(*parts[:n]) / "__init__.py").is_file() for n in range(1, len(parts) + 1))
        if whole and any(fnmatch(".".join(parts), pattern) for pattern in find["include"]):
            found.add(".".join(parts))
    return found


def is_shipped_data(path: Path) -> bool:
    package, *inside = path.relative_to(ROOT).parts
    patterns = SETUPTOOLS["package-data"].get(package, [])
    found = {name for pattern in patterns for name in glob(pattern, root_dir=ROOT / package, recursive=True)}
    return str(Path(*inside)) in found


def test_every_folder_of_modules_is_a_package_that_ships() -> None:
    folders = {path.parent.relative_to(ROOT) for name in SOURCES for path in (ROOT / name).rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} == shipped_packages()
    assert SETUPTOOLS["py-modules"] == ["train"]


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
    assert set(extras) == {"text", "remote", "loggers", "parquet", "heic", "dev"}
    named = set(re.findall(r"inpaint-module\[(\w+)\]", "\n".join(path.read_text() for path in TEXTS)))
    assert named <= set(extras)
