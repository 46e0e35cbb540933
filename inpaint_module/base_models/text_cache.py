"""What text encoders make of each caption, computed once and kept in a folder, so that training never loads them.

`text.json` says of which encoders and options the embeddings are, and which file holds which caption; the files are
safetensors, read a caption at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from inpaint_module.files import atomic_write, atomic_write_text
from inpaint_module.parsing import read_json
from inpaint_module.weights import local_folder

if TYPE_CHECKING:
    from inpaint_module.base_models.family import TextOptions
    from inpaint_module.base_models.text import TextConditioning

RECORD = "text.json"
_FORMAT = 1
_NOTHING = "nothing"  # what stands for a dropped caption
_PIECE, _PIECES = 1 << 16, 64  # bytes and number of the pieces that tell a file of weights from others
_MANY = 1 << 28  # bytes of one file of embeddings, about
_AGAIN = "write it again, into an empty folder, by `inpaint shards cache-text`"


def describe(path: str, options: TextOptions) -> dict[str, Any]:
    """What embeddings depend on, as JSON gives it back: options, and the files of text encoders and tokenizers.

    Of a file above 4 MiB the size and 64 pieces count, evenly spread, since a T5 whole would take long to read at every
    start; of a hub name the name alone.
    """
    folder = Path(local_folder(path))
    files = sorted(
        file
        for part in ("text_encoder*", "tokenizer*")
        for file in folder.glob(f"{part}/*")
        if file.is_file() and not file.name.startswith(".")
    )
    made = {str(file.relative_to(folder)): _sha256_of_pieces(file) for file in files}
    names = ("dtype", "length", "t5", "clip_skip", "quantize")
    return {"files": made or {"hub": path}, "options": {name: getattr(options, name) for name in names}}


def _sha256_of_pieces(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        found = hashlib.sha256(b"%d" % size)
        for piece in range(_PIECES):
            file.seek(max(size - _PIECE, 0) * piece // (_PIECES - 1) if size > _PIECE * _PIECES else piece * _PIECE)
            found.update(file.read(_PIECE))
    return found.hexdigest()


def sent(x: Tensor, device: torch.device) -> Tensor:
    """On a device; a GPU with work before this is not waited for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class TextCache:
    """The embeddings of captions, as `write_text_cache` has written them.

    Args:
        folder: of `text.json` and its files.
        made_of: what `describe` says of the base model that is to be trained.

    Attributes:
        fingerprint: the sha256 of the text encoders' weights, 32 bytes, as `TextConditioning.fingerprint` gives it.

    Raises:
        ValueError: no cache there, or one of other text encoders or options.
    """

    def __init__(self, folder: str | Path, made_of: dict[str, Any]):
        self.folder = Path(folder)
        if not (self.folder / RECORD).is_file():
            raise ValueError(
                f"base.text.cache: expected a folder that `inpaint shards cache-text` has written, with {RECORD}, got "
                f"{str(folder)!r}"
            )
        record = read_json(self.folder / RECORD, advice=_AGAIN)
        record["format"].whole(_FORMAT, _FORMAT)
        _compare(self.folder, record["made_of"].value, made_of)
        self.fingerprint = bytes.fromhex(record["fingerprint"].text())
        self._files = {key: number.whole() for key, number in record["captions"].members().items()}
        self._open = cache(self._opened)

    def read(self, captions: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        """The embeddings of B captions, B rows each, as `TextConditioning.read`, in the cache's dtype.

        Raises:
            ValueError: naming the first caption that is not there.
        """
        for caption in captions:
            if _key(caption) not in self._files:
                raise ValueError(
                    f"base.text.cache: expected every caption in {self.folder}, got one that is not: {caption[:80]!r}. "
                    "`inpaint shards cache-text` with the same folder adds those of its config's data and those of "
                    "--caption; base.text.cache: null loads the text encoders"
                )
        rows = [self._row(_key(caption)) for caption in captions]
        return {name: sent(torch.stack([row[name] for row in rows]), device) for name in rows[0]}

    def nothing(self) -> dict[str, Tensor]:
        """What stands for a dropped caption, one row each, on the CPU."""
        return {name: value[None] for name, value in self._row(_NOTHING).items()}

    def _row(self, key: str) -> dict[str, Tensor]:
        try:
            return {name: self._open(self._files[key]).get_tensor(f"{key}.{name}") for name in self._names}
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"base.text.cache: {self.folder} has lost a caption ({error}): {_AGAIN}") from error

    @cached_property
    def _names(self) -> list[str]:
        names = self._open(self._files[_NOTHING]).keys()
        return sorted(name.removeprefix(f"{_NOTHING}.") for name in names if name.startswith(f"{_NOTHING}."))

    def _opened(self, number: int) -> Any:
        path = self.folder / _file_name(number)
        try:
            return safe_open(path, "pt")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"base.text.cache: {path} cannot be read ({error}): {_AGAIN}") from error


def _compare(folder: Path, there: Any, here: dict[str, Any]) -> None:
    for part in ("options", "files"):
        old, new = there.get(part, {}), here[part]
        for name in [*new, *(name for name in old if name not in new)]:
            if old.get(name) != new.get(name):
                raise ValueError(
                    f"base.text.cache: expected {folder} to be of the text encoders and options of this run, but "
                    f"{part.removesuffix('s')} {name} was {old.get(name)} and is {new.get(name)}: {_AGAIN}"
                )


def write_text_cache(
    folder: str | Path,
    captions: Iterable[str],
    conditioning: Callable[[], TextConditioning],
    made_of: dict[str, Any],
    *,
    dtype: str = "bfloat16",
    progress: Callable[[list[str]], Iterable[str]] = iter,
) -> int:
    """Write the embeddings of captions, those that the folder has not yet.

    Args:
        folder: a new one, or one that was written for the same encoders and options, which grows.
        captions: whatever a training may ask for; what stands for a dropped one is added.
        conditioning: loads the text encoders, if there is anything to write.
        made_of: what `describe` says of them.
        dtype: of the embeddings.
        progress: is shown the captions that are to be written.

    Returns:
        How many were written.

    Raises:
        ValueError: a folder with a cache of other encoders, options or dtype; embeddings that are not finite.
    """
    folder = Path(folder)
    record: dict[str, Any] = {"format": _FORMAT, "made_of": made_of, "dtype": dtype, "captions": {}}
    if (folder / RECORD).is_file():
        record = read_json(folder / RECORD, advice=_AGAIN).value
        _compare(folder, record["made_of"], made_of)
        if record["dtype"] != dtype:
            raise ValueError(f"--dtype: expected {record['dtype']}, as of the cache in {folder}, got {dtype}")
    missing = [caption for caption in dict.fromkeys(captions) if _key(caption) not in record["captions"]]
    if not missing and _NOTHING in record["captions"]:
        return 0
    text, source = conditioning(), iter(progress(missing))
    fingerprint = text.fingerprint().hex()
    if record.setdefault("fingerprint", fingerprint) != fingerprint:
        raise ValueError(
            f"{folder}: expected the text encoders that its embeddings are of, with weights of sha256 "
            f"{record['fingerprint'][:12]}, got those of {fingerprint[:12]}: {_AGAIN}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    made = {} if _NOTHING in record["captions"] else {_NOTHING: _row(text.nothing(), dtype, "a dropped caption")}
    while True:
        size = 0
        for caption in source:
            made[_key(caption)] = _row(text.read([caption]), dtype, repr(caption[:80]))
            size += sum(value.nbytes for value in made[_key(caption)].values())
            if size >= _MANY:
                break
        if not made:
            return len(missing)
        _write_file(folder, record, made)
        made = {}


def _row(embeddings: dict[str, Tensor], dtype: str, caption: str) -> dict[str, Tensor]:
    rows = {name: value[0].to(getattr(torch, dtype)).cpu() for name, value in embeddings.items()}
    if not all(value.isfinite().all() for value in rows.values()):
        raise ValueError(
            f"expected finite embeddings of {caption}, got infinite or NaN ones: choose a text.dtype and a --dtype "
            "that do not overflow, such as bfloat16 or float32"
        )
    return rows


def _write_file(folder: Path, record: dict[str, Any], made: dict[str, dict[str, Tensor]]) -> None:
    """One more file, and then the record that names it: a run that is killed between leaves what is written over."""
    number = max(record["captions"].values(), default=-1) + 1
    tensors = {f"{key}.{name}": value.contiguous() for key, row in made.items() for name, value in row.items()}
    with atomic_write(folder / _file_name(number)) as file:
        file.write(save(tensors))
    record["captions"] |= dict.fromkeys(made, number)
    atomic_write_text(folder / RECORD, json.dumps(record) + "\n")


def _file_name(number: int) -> str:
    return f"text-{number:05d}.safetensors"


def _key(caption: str) -> str:
    return hashlib.sha256(caption.encode(errors="surrogatepass")).hexdigest()
