"""From a config's shard list to shards: folders, paths, URLs, brace patterns, globs and the embedded photos."""

from __future__ import annotations

import mimetypes
import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from glob import escape, glob
from itertools import islice
from pathlib import Path
from urllib.parse import quote, urlsplit

from webdataset.shardlists import expand_urls

from datamodules.shards.downloads import RetryPolicy, fetch
from datamodules.shards.manifest import MANIFEST, ManifestRow, Shard, index_digest, parse_manifest, read_manifest
from datamodules.shards.shard_cache import ShardCache
from datamodules.shards.shard_set import ShardSet
from datamodules.shards.tar_index import index_shard
from datamodules.shards.transports import SCHEMES, MissingError, file_name, is_remote, scheme, with_path
from inpaint_module.files import redact, redacted

OfFolder = Callable[[Path, list[Shard]], list[Shard]]
_EMBEDDED = Path(__file__).parents[1] / "assets"
_LOOKED_AT = 10_000  # files of a folder without shards, to see whether there are pictures
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_REASONS = {
    "pipe": "a pipe runs a shell command",
    "file": "write local files as paths",
    "hf": "download the files first, or use their https addresses",
}


def _check_scheme(address: str) -> None:
    """Refuse what no transport reads."""
    if (kind := scheme(address)) is not None and not is_remote(address):
        reason = f": {_REASONS[kind]}" if kind in _REASONS else ""
        raise ValueError(
            f"shards {redact(address)!r}: expected a local folder, tar, brace pattern or glob, a URL of "
            f"{', '.join(f'{name}://' for name in SCHEMES)}, or embedded:train; {kind}: is not supported{reason}"
        )
    try:
        urlsplit(address if is_remote(address) else "")
    except ValueError:
        raise ValueError(f"shards {redact(address)!r}: expected a URL") from None  # the error's text has the password


def packing_advice(path: Path) -> str:
    """What to do with pictures, or a table of them, that were given as shards; "" if the path is none of these."""
    places = os.walk(path) if path.is_dir() else [("", [], [path.name])]
    names = (name for _, _, files in places for name in files)
    kinds = (mimetypes.guess_type(name)[0] or "" for name in islice(names, _LOOKED_AT))
    if any(kind.startswith("image/") for kind in kinds) or path.suffix.lower() in _TABLES:
        is_source = path.is_dir() or path.suffix.lower() in _TABLES  # of one picture, all those beside it are meant
        source = shlex.quote(str(path if is_source else path.parent))
        command = f"inpaint shards make {source} FOLDER"
        return f"; make shards of pictures with: {command}, then name FOLDER here"
    return ""


def _scan(path: Path) -> Shard:
    """A shard that no manifest names."""
    if advice := packing_advice(path):
        raise ValueError(f"shards {str(path)!r}: expected a tar of samples, got another file{advice}")
    index = index_shard(path)
    size, aside = path.stat().st_size, index.count_aside() or 0
    return Shard(str(path), len(index.keys), size, index_digest(index), index, aside=aside)


def _advice(item: str) -> str:
    return f"make one with: inpaint shards index {shlex.quote(redact(item))} FOLDER"


class _Finder:
    """Finds the shards of one list, reading each folder's manifest once."""

    def __init__(self, policy: RetryPolicy, of_folder: OfFolder | None) -> None:
        self.policy, self.of_folder = policy, of_folder
        self.here: dict[Path, dict[str, Shard]] = {}  # folder -> path -> shard
        self.there: dict[str, dict[str, Shard]] = {}  # folder -> name -> shard

    def find(self, item: str) -> list[Shard]:
        """One entry of a shard list -> shards."""
        if item.startswith("embedded:"):
            return self._local(item, str(_EMBEDDED / item.removeprefix("embedded:")))
        _check_scheme(item)
        shards = self._remote(item) if is_remote(item) else self._local(item, item)
        for shard in shards:
            _check_scheme(shard.path)  # a manifest names URLs too
        return shards

    def _known(self, folder: Path) -> dict[str, Shard]:
        """The shards of a local manifest; none if there is none."""
        if folder not in self.here:
            shards = read_manifest(folder) if (folder / MANIFEST).exists() else []
            self.here[folder] = {shard.path: shard for shard in shards}
        return self.here[folder]

    def _tar(self, path: Path) -> Shard:
        return self._known(path.parent).get(str(path)) or _scan(path)

    def _local(self, item: str, place: str) -> list[Shard]:
        folder = Path(place)
        if folder.is_dir():
            shards = list(self._known(folder).values()) or [_scan(path) for path in sorted(folder.glob("*.tar"))]
            if self.of_folder is not None:
                shards = self.of_folder(folder, shards)
            if not shards:
                advice = packing_advice(folder)
                raise ValueError(f"shards {item!r}: no {MANIFEST} and no *.tar in {folder.resolve()}{advice}")
            return shards
        patterns = list(expand_urls(place))
        found = {pattern: [pattern] if os.path.exists(pattern) else sorted(glob(pattern)) for pattern in patterns}
        if missing := [redact(pattern) for pattern in patterns if not found[pattern]]:
            raise ValueError(f"shards {redact(item)!r}: nothing found at {missing[:3]} (from {os.getcwd()})")
        return [self._tar(Path(path)) for pattern in patterns for path in found[pattern]]

    def _remote(self, item: str) -> list[Shard]:
        shards, urls = [], list(expand_urls(item))
        if others := [url for url in urls if not is_remote(url)]:
            raise ValueError(f"shards {redact(item)!r}: expected URLs only, got {redact(others[0])!r}")
        for url in urls:
            try:
                shards += self._at(url)
            except ValueError as error:
                raise ValueError(f"shards {redact(item)!r}: {error}; {_advice(item)}") from error
        return shards

    def _at(self, url: str) -> list[Shard]:
        """The shards of a remote folder, or those of a tar's URL, `*` in its name allowed."""
        name = file_name(url) if file_name(url).endswith(".tar") else "*"
        folder = url if name == "*" else with_path(url, lambda path: path.rpartition("/")[0])
        if folder not in self.there:
            self.there[folder] = read_remote_manifest(folder, self.policy)
        known = self.there[folder]
        found = [known[name]] if name in known else [shard for key, shard in known.items() if fnmatchcase(key, name)]
        if not found:
            raise ValueError(f"no shard {name!r} in the {MANIFEST} of {redact(folder)}")
        return found


def find_shards(
    spec: str | Sequence[str], cache: ShardCache | None = None, of_folder: OfFolder | None = None
) -> list[Shard]:
    """Shards by folder, path, URL, brace pattern (`train-{000..099}.tar`), glob, or `embedded:train`; one or a list.

    Remote shards are those that the `manifest.json` in their folder names, or a local folder made by `index_shards`.

    Args:
        spec: one or several of them.
        cache: whose policy applies to remote manifests.
        of_folder: a local folder and its shards -> those that are read, which may be its pictures.

    Raises:
        ValueError: if an entry finds nothing, a remote shard is in no manifest, or a scheme is not allowed.
    """
    finder = _Finder(RetryPolicy() if cache is None else cache.policy, of_folder)
    return [shard for item in ([spec] if isinstance(spec, str) else spec) for shard in finder.find(item)]


def aside_line(shards: Sequence[Shard], name: str) -> str:
    """What to say at the start of members that are no part of a sample; "" if there are none."""
    if not (count := sum(shard.aside for shard in shards)):
        return ""
    kinds: Counter[str] = Counter()
    for shard in shards:
        for kind, (number, _) in ((shard.index and shard.index.aside) or {}).items():
            kinds[kind] += number
    named = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common()) if kinds.total() == count else ""
    tars = sum(shard.aside > 0 for shard in shards)
    more = f": {named}" if named else "; inpaint shards index names them"
    return f"{name}: {count} members of {tars} tar{'s' * (tars != 1)} are no part of a sample and left aside{more}"


def open_shards(spec: str | Sequence[str], cache: ShardCache | None = None) -> ShardSet:
    """`find_shards`, opened for reading; remote ones through the cache."""
    return ShardSet(find_shards(spec, cache), cache)


def in_folder(folder: str, name: str) -> str:
    """The URL of a file in a folder's URL."""
    if scheme(folder) in ("http", "https"):
        name = quote(name)
    return with_path(folder, lambda path: f"{path.rstrip('/')}/{name}")


def _shard(folder: str, row: ManifestRow) -> Shard:
    url = in_folder(folder, row.name) if row.url is None else row.url
    if row.path is not None or not is_remote(url):
        came = redact(f"{in_folder(folder, MANIFEST)}: expected shards at URLs, got {row.path or row.url!r}")
        raise ValueError(came)
    return Shard(url, row.count, row.bytes, row.sha256, aside=row.aside or 0)


def read_remote_manifest(folder: str, policy: RetryPolicy = RetryPolicy()) -> dict[str, Shard]:  # noqa: B008, immutable
    """Name -> shard by a remote folder's `manifest.json`, in its order; the shards' paths are URLs.

    Raises:
        ValueError: if there is none, or it is not a manifest of remote shards.
        RemoteError: if the server keeps failing.
    """
    url = in_folder(folder, MANIFEST)
    try:
        rows = fetch(url, lambda text: parse_manifest(text, redact(url)), policy)
    except MissingError as error:
        raise ValueError(f"expected a {MANIFEST} beside remote shards: {error}") from error
    return {row.name: _shard(folder, row) for row in rows}


def find_tars(spec: str, base: str = "") -> list[str]:
    """Addresses of tars by folder, path, brace pattern, glob, URL, or a text file of these (relative to its folder).

    Raises:
        ValueError: if nothing is found, or an address has a scheme that is not read.
    """
    if is_remote(spec):
        urls = list(expand_urls(spec))
        if other := [url for url in urls if not is_remote(url)]:
            raise ValueError(f"shards {redact(spec)!r}: expected URLs only, got {redacted(other[:3])}")
        return urls
    if scheme(spec) is not None:
        raise ValueError(f"shards {redact(spec)!r}: expected local tars or URLs of http, https, s3 or gs")
    path = os.path.join(base, spec)
    if os.path.isdir(path):
        found = sorted(glob(os.path.join(escape(path), "*.tar")))
    elif os.path.isfile(path) and path.endswith(".txt"):
        lines = (line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines())
        found = [tar for line in lines if line for tar in find_tars(line, os.path.dirname(path))]
    else:
        found = []
        for pattern in expand_urls(path):
            tars = [pattern] if os.path.exists(pattern) else sorted(glob(pattern))
            if not tars:
                raise ValueError(redact(f"shards {spec!r}: nothing found at {pattern}"))
            found += tars
    if not found:
        raise ValueError(f"shards {spec!r}: no tars there{packing_advice(Path(path))}")
    return found
