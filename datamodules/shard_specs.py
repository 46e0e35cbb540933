"""From a config's shard list to shards: folders, paths, brace patterns, globs and the embedded photos."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from webdataset.shardlists import expand_urls

from datamodules.manifest import MANIFEST, Shard, read_manifest
from datamodules.shards import ShardSet
from datamodules.tar_index import index_shard

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_EMBEDDED = Path(__file__).parent / "embedded"


def _expand(item: str) -> list[Path]:
    """One entry of a shard list -> tars."""
    if item.startswith("embedded:"):
        item = str(_EMBEDDED / item.removeprefix("embedded:"))
    elif _SCHEME.match(item):
        raise ValueError(
            f"shards {item!r}: expected a local folder, tar, brace pattern or glob, or embedded:train; "
            "remote addresses and pipes are not supported"
        )
    folder = Path(item)
    if folder.is_dir():
        has_manifest = (folder / MANIFEST).exists()
        paths = [Path(s.path) for s in read_manifest(folder)] if has_manifest else sorted(folder.glob("*.tar"))
    else:
        patterns = list(expand_urls(item))
        found = {pattern: [pattern] if os.path.exists(pattern) else sorted(glob(pattern)) for pattern in patterns}
        if missing := [pattern for pattern in patterns if not found[pattern]]:
            raise ValueError(f"shards {item!r}: nothing found at {missing[:3]} (from {os.getcwd()})")
        paths = [Path(path) for pattern in patterns for path in found[pattern]]
    if not paths:
        raise ValueError(f"shards {item!r}: no {MANIFEST} and no *.tar in {folder.resolve()}")
    return paths


def _scan(path: Path) -> Shard:
    """A shard that no manifest names."""
    index = index_shard(path)
    digest = hashlib.sha256(json.dumps(index).encode()).hexdigest()
    return Shard(str(path), len(index.keys), path.stat().st_size, f"index:{digest}", index)


def find_shards(spec: str | Sequence[str]) -> list[Shard]:
    """Shards by folder, path, brace pattern (`train-{000..099}.tar`), glob, or `embedded:train`; one or a list.

    Raises:
        ValueError: if an entry finds nothing, or is a URL or a pipe.
    """
    manifests: dict[Path, dict[str, Shard]] = {}
    shards = []
    for path in (path for item in ([spec] if isinstance(spec, str) else spec) for path in _expand(item)):
        folder = path.parent
        if folder not in manifests:
            known = read_manifest(folder) if (folder / MANIFEST).exists() else []
            manifests[folder] = {Path(shard.path).name: shard for shard in known}
        shards.append(manifests[folder].get(path.name) or _scan(path))
    return shards


def open_shards(spec: str | Sequence[str]) -> ShardSet:
    """`find_shards`, opened for reading."""
    return ShardSet(find_shards(spec))
