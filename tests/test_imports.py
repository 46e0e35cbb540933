"""Imports only go down: the floors of the house, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "inpaint_module.caption_sheet": 0,
    "inpaint_module.checkpoint_io": 0,
    "inpaint_module.denoiser_call": 0,
    "inpaint_module.ema": 0,
    "inpaint_module.embedded": 0,
    "inpaint_module.feature_distance": 0,
    "inpaint_module.fingerprints": 0,
    "inpaint_module.frozen_vae": 0,
    "inpaint_module.line_chart": 0,
    "inpaint_module.metrics": 0,
    "inpaint_module.models": 0,
    "inpaint_module.morphology": 0,
    "inpaint_module.nonfinite_guard": 0,
    "inpaint_module.pca_start": 0,
    "inpaint_module.prediction_types": 0,
    "inpaint_module.randomness": 0,
    "inpaint_module.report_style": 0,
    "inpaint_module.seam": 0,
    "inpaint_module.sharding": 0,
    "inpaint_module.surgery": 0,
    "inpaint_module.throughput": 0,
    "inpaint_module.conditioning": 1,
    "inpaint_module.lora": 1,
    "inpaint_module.loss_weights": 1,
    "inpaint_module.masks": 1,
    "inpaint_module.rank_checks": 1,
    "inpaint_module.text_encoder": 1,
    "inpaint_module.tiling": 1,
    "inpaint_module.timesteps": 1,
    "inpaint_module.vae_comfy": 1,
    "inpaint_module.vae_diffusers": 1,
    "inpaint_module.objectives": 2,
    "inpaint_module.resume": 2,
    "inpaint_module.vae": 2,
    "inpaint_module.cli": 3,
    "inpaint_module.encoder": 3,
    "inpaint_module.autoencoder_training": 4,
    "inpaint_module.clean_latents": 4,
    "inpaint_module.comfyui": 4,
    "inpaint_module.layouts": 4,
    "inpaint_module": 5,
    "inpaint_module.sampling": 5,
    "inpaint_module.text_conditioning": 5,
    "inpaint_module.transformer_calls": 5,
    "inpaint_module.base_models": 6,
    "inpaint_module.callbacks": 6,
    "inpaint_module.fill_scores": 6,
    "inpaint_module.validation": 6,
    "inpaint_module.lightning_module": 7,
    "inpaint_module.run_record": 7,
    "inpaint_module.compare_runs": 8,
    "inpaint_module.export": 8,
    "inpaint_module.inpaint_image": 8,
    "inpaint_module.report_page": 8,
    "inpaint_module.report_files": 9,
    "inpaint_module.report": 10,
    "datamodules.argument_checks": 0,
    "datamodules.bad_share": 0,
    "datamodules.buckets": 0,
    "datamodules.captions": 0,
    "datamodules.coco_rle": 0,
    "datamodules.config_parts": 0,
    "datamodules.data_counters": 0,
    "datamodules.file_locks": 0,
    "datamodules.jpeg": 0,
    "datamodules.open_files": 0,
    "datamodules.ordered_pool": 0,
    "datamodules.patient_reader": 0,
    "datamodules.polarity": 0,
    "datamodules.polygons": 0,
    "datamodules.prefetcher": 0,
    "datamodules.progress_line": 0,
    "datamodules.quarantine": 0,
    "datamodules.sequential_file": 0,
    "datamodules.source_tables": 0,
    "datamodules.trainer_checks": 0,
    "datamodules.transports": 0,
    "datamodules.downloads": 1,
    "datamodules.draws": 1,
    "datamodules.order": 1,
    "datamodules.remote_stream": 1,
    "datamodules.stream_datamodule": 1,
    "datamodules.tar_index": 1,
    "datamodules.augmentations": 2,
    "datamodules.batches": 2,
    "datamodules.bucket_order": 2,
    "datamodules.crops": 2,
    "datamodules.donors": 2,
    "datamodules.manifest": 2,
    "datamodules.mixed_order": 2,
    "datamodules.shard_writer": 2,
    "datamodules.source_lists": 2,
    "datamodules.images": 3,
    "datamodules.remote_manifest": 3,
    "datamodules.shard_cache": 3,
    "datamodules.shard_journal": 3,
    "datamodules.image_sizes": 4,
    "datamodules.mask_sources": 4,
    "datamodules.shards": 4,
    "datamodules.aspects": 5,
    "datamodules.coco_masks": 5,
    "datamodules.data_measures": 5,
    "datamodules.inflight": 5,
    "datamodules.latent_cache": 5,
    "datamodules.own_masks": 5,
    "datamodules.shard_specs": 5,
    "datamodules.source_samples": 5,
    "datamodules.stream": 5,
    "datamodules.tar_indexer": 5,
    "datamodules.crashes": 6,
    "datamodules.findings": 6,
    "datamodules.index_shards": 6,
    "datamodules.make_shards": 6,
    "datamodules.samples": 6,
    "datamodules.substitution": 6,
    "datamodules.recovery": 7,
    "datamodules.loaders": 8,
    "datamodules.model_measures": 8,
    "datamodules.model_checks": 9,
    "datamodules.predict": 9,
    "datamodules.webdataset_datamodule": 9,
    "datamodules": 10,
    "datamodules.examination": 10,
    "datamodules.latent_samples": 10,
    "datamodules.cache_latents": 11,
    "datamodules.doctor_sheet": 11,
    "datamodules.doctor_table": 11,
    "datamodules.doctor": 12,
    "train": 4,
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
