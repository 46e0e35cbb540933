"""A folder of pictures as shards that are not written: what make_shards would pack, read from the pictures themselves.

At the first start every picture is read once, as make_shards reads it, and an index is kept: which samples would lie in
which tar, and the sha256 of that tar. The order of samples, their bytes and the fingerprint of the set are therefore
those of the shards that make_shards makes of the folder with its default options. Later starts compare the names, sizes
and times of the files with the index, and read all anew if they differ. What make_shards would write otherwise than it
lies in the folder, such as a BMP as PNG, is kept beside the index.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import PIL
from lightning.pytorch.utilities import rank_zero_info
from tqdm import tqdm

from datamodules.account import Account
from datamodules.decode.conversion import is_picture
from datamodules.order import BadSample, Quarantine
from datamodules.shards.manifest import Shard
from datamodules.shards.tar_index import ScannedTar, ShardIndex
from datamodules.writing.ordered_pool import ordered_map
from datamodules.writing.shard_writer import ShardWriter
from datamodules.writing.source_lists import Source, file_states, find_sources, fingerprint
from datamodules.writing.source_samples import PackedSample, Packing, try_source
from datamodules.writing.source_tables import Cell
from inpaint_module.cli.options import SHARD_BYTES
from inpaint_module.files import atomic_write, atomic_write_text, locked

_VERSION = 1
_MADE = "made"  # the folder of what lies otherwise in the pictures' folder
_FEW = 256  # pictures that one process reads sooner than several have started
_MOST_WORKERS = 8
_SHOWN = 5

States = dict[str, tuple[int, int]]


class FolderShards(NamedTuple):
    """What a folder of pictures holds.

    Attributes:
        shards: the tars that make_shards would write.
        refused: file name -> why it cannot be used, of those left out.
        states: size in bytes and time of each file that is used, by its path from the folder.
        account: in words, what was taken, found and left aside; "" if the index was there already.
    """

    shards: list[Shard]
    refused: dict[str, str]
    states: States
    account: str = ""


def has_pictures(folder: Path) -> bool:
    """Whether a picture that can be read lies in the folder or under it, by the names."""
    return any(is_picture(name) for _, _, names in os.walk(folder) for name in names if not name.startswith("."))


def folder_shards(folder: Path, home: Path) -> FolderShards:
    """The shards of a folder of pictures, of its index, which is made if there is none or the folder has changed.

    Args:
        folder: of pictures, with what lies beside them, as make_shards reads it.
        home: where indexes are kept, one folder for each.

    Raises:
        ValueError: if no picture can be read there.
    """
    account = Account()
    sources = find_sources(folder, account=account)
    digest = hashlib.sha256(str(folder.resolve()).encode(errors="surrogateescape")).hexdigest()
    place = home / f"{folder.resolve().name[:40]}-{digest[:16]}"
    (place / _MADE).mkdir(parents=True, exist_ok=True)
    wanted = {"version": _VERSION, "contents": fingerprint(sources), "pillow": PIL.__version__}
    with locked(place / "lock"):  # the other ranks and runs of this machine wait for the index
        known = _read_index(place, wanted)
        if known is not None:
            with suppress(KeyError, TypeError, ValueError, AttributeError):  # damaged: made anew
                return _opened(folder, place, sources, known)
        content = wanted | _index(place, sources, account)
        atomic_write_text(place / "index.json", json.dumps(content) + "\n")
    return _opened(folder, place, sources, content)._replace(account=account.text())


def what_changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which files were added, removed and changed between two `states`, in words; "" if none."""
    kinds = {
        "added": sorted(now.keys() - before.keys()),
        "removed": sorted(before.keys() - now.keys()),
        "changed": sorted(name for name in now.keys() & before.keys() if list(now[name]) != list(before[name])),
    }
    return "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in kinds.items() if names)


def _first(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _read_index(place: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The index, if there is one of this very content; a damaged one counts as none."""
    try:
        content = json.loads((place / "index.json").read_text(encoding="utf-8"))
        made = {name for fields in content["made"].values() for name in fields.values()}
        whole = made <= {path.name for path in (place / _MADE).iterdir()}
        return content if whole and {name: content[name] for name in wanted} == wanted else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _index(place: Path, sources: list[Source], account: Account) -> dict[str, Any]:
    """Read all sources: the tars that they would make, those that cannot be used, and what must be kept."""
    writer, tars, refused, made = ShardWriter(None, SHARD_BYTES, None), [], {}, {}
    workers = 1 if len(sources) < _FEW else min(_MOST_WORKERS, os.cpu_count() or 1)
    encode = partial(try_source, packing=Packing())
    bar = tqdm(sources, unit="image", desc="index", disable=None)
    for source, result in zip(
        sources, ordered_map(encode, bar, workers=workers, preload=try_source.__module__), strict=True
    ):
        if isinstance(result, str):
            refused[source.name] = result
            continue
        account.take(result.found, result.notes)
        made[source.key] = _keep(place, source, result)
        tars.append(writer.write(*result.sample))
    tars.append(writer.finish())
    account.refused += refused.values()
    return {"tars": [_row(*tar) for tar in tars if tar], "refused": refused, "made": made}


def _row(name: str, tar: ScannedTar) -> dict[str, Any]:
    return {"name": name, "bytes": tar.bytes, "sha256": tar.sha256, **tar.index._asdict()}


def _keep(place: Path, source: Source, packed: PackedSample) -> dict[str, str]:
    """Write down the fields that are not a file of the folder as it is: field -> file name."""
    made = {}
    for field, data in packed.sample.fields.items():
        path = _file_of(source, field)
        if path is None or path.read_bytes() != data:
            made[field] = hashlib.sha256(data).hexdigest()
            with atomic_write(place / _MADE / made[field]) as file:  # older ones stay: a run may still read them
                file.write(data)
    return made


def _file_of(source: Source, field: str) -> Path | None:
    """The file of the folder that a field is read from; None if there is none."""
    purpose, dot, _ = field.partition(".")
    beside = dict(source.beside)
    if not dot and purpose not in ("txt", "cls", "json"):
        place: Path | Cell | None = source.path
    else:
        place = None if purpose in dict(source.given) else beside.get(purpose)
    return place if isinstance(place, Path) else None


def _opened(folder: Path, place: Path, sources: list[Source], content: Mapping[str, Any]) -> FolderShards:
    """Shards whose samples are read from the files of the folder, and from those that are kept."""
    by_key = {source.key: source for source in sources}
    states = file_states(sources)

    def files(key: str, fields: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
        """Field -> path, and the time that it must have; 0 for any."""
        found = {}
        for field in fields:
            made = content["made"][key].get(field)
            path = place / _MADE / made if made else _file_of(by_key[key], field)
            assert path is not None
            found[field] = (str(path), 0 if made else states[path][1])
        return found

    shards = []
    for row in content["tars"]:
        fields = [{name: (start, size) for name, (start, size) in sample.items()} for sample in row["fields"]]
        index = ShardIndex(row["keys"], fields, [(width, height) for width, height in row["sizes"]])
        shards.append(
            Shard(
                str(folder / row["name"]),
                len(row["keys"]),
                row["bytes"],
                row["sha256"],
                index,
                files=tuple(map(files, row["keys"], fields)),
            )
        )
    relative = {os.path.relpath(path, folder): state for path, state in states.items()}
    return FolderShards(shards, dict(content["refused"]), relative)


_AT_LEAST = 1000  # pictures that a share is of, as for samples that turn out bad in training
FILES = "train_files.json"  # in the run folder: the files that it was trained on


class PictureFolders:
    """Opens the folders of pictures among a config's shards, and says what is wrong with them.

    Args:
        name: of the argument that names them, such as `data.train_shards`.
        home: where indexes are kept.
        max_bad_share: refuse folders of which more pictures (0..1) cannot be used; 0 for none at all.
    """

    def __init__(self, name: str, home: Path, max_bad_share: float) -> None:
        self.name, self.home, self.max_bad_share = name, home, max_bad_share
        self.refused: list[BadSample] = []
        self.states: dict[str, States] = {}

    def __call__(self, folder: Path, tars: list[Shard]) -> list[Shard]:
        """The shards of a folder: its tars, or, if there are none, those that its pictures would make.

        Raises:
            ValueError: naming pictures that cannot be used, if they are too many.
        """
        if not has_pictures(folder):
            return tars
        if tars:
            rank_zero_info(
                f"{self.name}: {folder} holds both tars and pictures: its {len(tars)} tars are read, its pictures are "
                "not; to train from pictures, name a folder of them alone"
            )
            return tars
        rank_zero_info(f"{self.name}: {folder} is a folder of pictures, compared with its index in {self.home}")
        found = folder_shards(folder, self.home)
        if found.account:
            rank_zero_info(f"{self.name}: {folder} was read for its index: {found.account.rstrip()}")
        self._check(folder, found)
        self.states[str(folder.resolve())] = found.states
        self.refused += [BadSample(str(folder), name, -1, reason) for name, reason in found.refused.items()]
        return found.shards

    def _check(self, folder: Path, found: FolderShards) -> None:
        taken, bad = sum(shard.count for shard in found.shards), len(found.refused)
        if not bad:
            return
        first = "; ".join(list(found.refused.values())[:_SHOWN])
        if not taken or bad > self.max_bad_share * max(_AT_LEAST, taken + bad):
            raise ValueError(
                f"{self.name}: {folder}: expected pictures that can be used, got {bad} of {taken + bad} that cannot: "
                f"{first}; mend or remove them{self._advice()}"
            )
        rank_zero_info(
            f"{self.name}: {folder}: {bad} of {taken + bad} pictures cannot be used and are left out: {first}"
        )

    def _advice(self) -> str:
        return ", or raise data.loading.max_bad_share" if self.max_bad_share else ""

    def begin(self, run: Path, rank: int) -> None:
        """Write what cannot be used into the run's quarantine, and the files of the run for `name_changes`."""
        quarantine = Quarantine(run, rank=rank)
        for bad in self.refused if rank == 0 else ():
            quarantine.add(bad)
        if self.states and rank == 0:
            run.mkdir(parents=True, exist_ok=True)
            atomic_write_text(run / FILES, json.dumps(self.states) + "\n")

    def name_changes(self, run: Path) -> None:
        """Name the files that are not what they were when this run started last; the checkpoint says if it matters."""
        try:
            before = json.loads((run / FILES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        for folder, states in self.states.items():
            known = before.get(folder) if isinstance(before, dict) else None
            if isinstance(known, dict) and (changed := what_changed(known, states)):
                rank_zero_info(f"{self.name}: {folder} has changed since this run started last: {changed}")
