"""Imports only go down: the floors of the house, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "inpaint_module.morphology": 0,
    "inpaint_module.randomness": 0,
    "inpaint_module.models": 0,
    "inpaint_module.checkpoint_io": 0,
    "inpaint_module.resume": 1,
    "inpaint_module.cli": 2,
    "inpaint_module.frozen_vae": 0,
    "inpaint_module.vae_diffusers": 1,
    "inpaint_module.vae_comfy": 1,
    "inpaint_module.vae": 2,
    "inpaint_module.masks": 3,
    "inpaint_module.encoder": 3,
    "inpaint_module.layouts": 4,
    "inpaint_module.comfyui": 4,
    "inpaint_module.surgery": 5,
    "inpaint_module.sampling": 5,
    "inpaint_module.metrics": 5,
    "inpaint_module.throughput": 5,
    "inpaint_module.pca_start": 5,
    "inpaint_module.callbacks": 6,
    "inpaint_module.lightning_module": 6,
    "inpaint_module.autoencoder_training": 6,
    "inpaint_module": 7,
    "inpaint_module.run_record": 7,
    "inpaint_module.compare_runs": 8,
    "datamodules.tar_index": 8,
    "datamodules.draws": 8,
    "datamodules.shard_writer": 8,
    "datamodules.coco_rle": 8,
    "datamodules.polygons": 8,
    "datamodules.polarity": 8,
    "datamodules.batches": 8,
    "datamodules.argument_checks": 8,
    "datamodules.trainer_checks": 8,
    "datamodules.manifest": 9,
    "datamodules.shards": 10,
    "datamodules.crops": 9,
    "datamodules.shard_specs": 12,
    "datamodules.stream": 11,
    "datamodules.images": 11,
    "datamodules.donors": 12,
    "datamodules.mask_sources": 13,
    "datamodules.coco_masks": 14,
    "datamodules.samples": 14,
    "datamodules.loaders": 16,
    "datamodules.make_shards": 16,
    "datamodules.stream_datamodule": 9,
    "datamodules.webdataset_datamodule": 18,
    "datamodules": 19,
    "train": 20,
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
