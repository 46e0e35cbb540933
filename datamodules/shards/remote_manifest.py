"""What a remote folder of shards holds, by the `manifest.json` in it."""

from __future__ import annotations

from urllib.parse import quote

from datamodules.remote.downloads import fetch
from datamodules.remote.patience import Patience
from datamodules.remote.transports import MissingError, is_remote, scheme, with_path
from datamodules.shards.manifest import MANIFEST, ManifestRow, Shard, parse_manifest
from inpaint_module.redaction import redact


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


def read_remote_manifest(folder: str, patience: Patience = Patience()) -> dict[str, Shard]:  # noqa: B008, immutable
    """Name -> shard by a remote folder's `manifest.json`, in its order; the shards' paths are URLs.

    Raises:
        ValueError: if there is none, or it is not a manifest of remote shards.
        RemoteError: if the server keeps failing.
    """
    url = in_folder(folder, MANIFEST)
    try:
        rows = fetch(url, lambda text: parse_manifest(text, redact(url)), patience)
    except MissingError as error:
        raise ValueError(f"expected a {MANIFEST} beside remote shards: {error}") from error
    return {row.name: _shard(folder, row) for row in rows}
