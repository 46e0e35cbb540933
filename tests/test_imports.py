"""Imports only go down: the floors of the house, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "inpaint_module.files": -2,
    "inpaint_module.parsing": -1,
    "inpaint_module.batch": -1,
    "inpaint_module.report.pages": 1,
    "inpaint_module.cli": 0,
    "inpaint_module.weights": 0,
    "inpaint_module.fills": 1,
    "inpaint_module.morphology": 0,
    "inpaint_module.randomness": 0,
    "inpaint_module.pixels": 0,
    "inpaint_module.training.lightning_private": 1,
    "inpaint_module.training.run_lock": 1,
    "inpaint_module.training.run_folder": 2,
    "inpaint_module.masks": 2,
    "inpaint_module.objectives": 1,
    "inpaint_module.frozen_vae": 0,
    "inpaint_module.vae": 1,
    "inpaint_module.encoder": 2,
    "inpaint_module.clean_latents": 3,
    "inpaint_module.comfyui": 3,
    "inpaint_module": 9,
    "inpaint_module.base_models": 4,
    "inpaint_module.sampling": 5,
    "inpaint_module.metrics": 6,
    "inpaint_module.training": 7,
    "inpaint_module.cli.terminal": 1,
    "inpaint_module.cli.training": 9,
    "inpaint_module.__main__": 10,
    "inpaint_module.compare_runs": 9,
    "inpaint_module.exported_files": 8,
    "inpaint_module.app": 9,
    "inpaint_module.export": 9,
    "inpaint_module.trained": 8,
    "inpaint_module.inpaint_image": 8,
    "inpaint_module.report": 8,
    "datamodules.account": 0,
    "datamodules.shards": 1,
    "datamodules.stream_datamodule": 3,
    "datamodules.decode": 2,
    "datamodules.order": 3,
    "datamodules.webdataset_datamodule": 5,
    "datamodules": 11,
    "datamodules.writing": 4,
    "datamodules.cache_latents": 7,
    "datamodules.cache_text": 7,
    "datamodules.index_shards": 7,
    "datamodules.make_shards": 7,
    "datamodules.predict": 9,
    "datamodules.doctor": 9,
    "datamodules.samples": 10,
    "train": 10,
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(name: str) -> str:
    """The module, or the package whose inside it belongs to, that has a floor."""
    if name not in FLOORS:
        name = ".".join(name.split(".")[:2])
    assert name in FLOORS, "every module has a floor: add it to FLOORS"
    return name


def own_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    found = {name for name in found if name.split(".")[0] in ("inpaint_module", "datamodules", "train")}
    longest = {name for name in found if not any(other.startswith(name + ".") and is_module(other) for other in found)}
    return {name if is_module(name) else name.rpartition(".")[0] for name in longest}


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


SOURCES = [*sorted((ROOT / "inpaint_module").rglob("*.py")), *sorted((ROOT / "datamodules").rglob("*.py"))]


@pytest.mark.parametrize("path", [*SOURCES, ROOT / "train.py"], ids=module_name)
def test_imports_only_go_down(path: Path) -> None:
    own = module_name(path)
    for name in own_imports(path):
        if unit(name) != unit(own):
            assert FLOORS[unit(name)] < FLOORS[unit(own)], f"{own} imports {name}, which is not below it"


def test_the_layer_knows_nothing_of_the_data() -> None:
    for path in (ROOT / "inpaint_module").rglob("*.py"):
        assert not any(name.startswith("datamodules") for name in own_imports(path)), path
