"""Corpus: hostile and broken files through the parts that a run is made of, and the exact outcome of each."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pytest
import torch
from data_fixtures import Halves, encode, photo, sample_decoder, write_tar
from mine import Mine
from PIL import Image

from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.order.loaders import StreamLoader
from datamodules.order.order import SampleOrder
from datamodules.order.sample_stream import SampleStream
from datamodules.shards.manifest import write_manifest
from datamodules.shards.shard_set import RawSample
from datamodules.shards.shard_specs import find_shards, open_shards
from datamodules.shards.tar_index import index_shard
from datamodules.webdataset_datamodule import WebDatasetDataModule

ROOT = Path(__file__).parents[1]


def test_the_mine_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Mine(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


# Tars; most of them are in test_tar_index.py


def special_member(kind: bytes) -> bytes:
    """A tar of one member of a kind that is not a plain file."""
    member = tarfile.TarInfo("a.jpg")
    member.type, member.linkname = kind, "/etc/hosts"
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def sparse_by_pax() -> bytes:
    """A member of 3 bytes that says that it is 300 MB."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = 3
        sparse = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,3", "GNU.sparse.name": "a.jpg"}
        member.pax_headers = {**sparse, "GNU.sparse.size": "300000000", "GNU.sparse.numblocks": "1"}
        tar.addfile(member, io.BytesIO(b"abc"))
    return file.getvalue()


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(special_member(kind))
    with pytest.raises(ValueError, match=r"0\.tar: member 'a\.jpg': expected a regular file"):
        find_shards(str(tmp_path))


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(sparse_by_pax())
    with pytest.raises(ValueError, match=r"0\.tar: member 'a\.jpg': expected a regular file, got a sparse file"):
        find_shards(str(tmp_path))


@pytest.mark.parametrize("suffix", ["pickle", "pkl", "pth", "pyd", "pt", "py", "so", "mask.pth", "dill"])
def test_code_in_a_shard_is_refused_and_not_run(tmp_path: Path, suffix: str) -> None:
    """webdataset's own decoder would run it."""
    mine = pickle.dumps(Mine(tmp_path / "executed"))
    write_tar(tmp_path / "0.tar", [("a.png", encode(photo(1))), (f"a.{suffix}", mine)])
    data = WebDatasetDataModule(str(tmp_path), batch_size=1, image_size=8, mask_generator=Halves())
    with pytest.raises(
        ValueError, match=rf"0\.tar: member 'a\.{suffix}': expected one of the suffixes jpg, .*'{suffix}"
    ):
        data.train_dataloader()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_in_a_shard_are_left_aside_and_not_run(tmp_path: Path, suffix: str) -> None:
    """They may be pickles, which webdataset's own decoder runs."""
    mine = pickle.dumps(Mine(tmp_path / "executed"))
    write_tar(tmp_path / "0.tar", [("a.png", encode(photo(1))), (f"a.{suffix}", mine)])
    data = WebDatasetDataModule(str(tmp_path), batch_size=1, image_size=8, mask_generator=Halves())
    assert next(iter(data.train_dataloader()))["__key__"] == ["a"]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("field", ["png", "json", "mask.png"])
def test_code_under_an_allowed_suffix_is_only_bytes(tmp_path: Path, field: str) -> None:
    fields = {"png": encode(photo(1)), field: pickle.dumps(Mine(tmp_path / "executed"))}
    with pytest.raises(ValueError, match=r"^s\.tar: sample 'k': "):
        decoder()(RawSample("s.tar", "k", fields, 0))
    assert not (tmp_path / "executed").exists()


def test_a_pipe_is_refused_and_not_run(tmp_path: Path) -> None:
    spec = f"pipe:mkdir {tmp_path}/executed"
    data = WebDatasetDataModule(spec, spec, batch_size=1, image_size=8, mask_generator=Halves())
    for loader in (data.train_dataloader, data.val_dataloader):
        with pytest.raises(ValueError, match="shards 'pipe:mkdir"):
            loader()
    assert not (tmp_path / "executed").exists()


def indexed(path: Path) -> list[tuple[str, list[str]]] | str:
    """Keys and their fields, or the refusal."""
    try:
        index = index_shard(path)
    except ValueError as error:
        return str(error)
    return list(zip(index.keys, map(list, index.fields), strict=True))


def test_a_damaged_tar_never_mixes_samples(tmp_path: Path) -> None:
    """Any 200 bytes overwritten: refused, or each caption is still beside its own image."""
    members = [(f"k{n}.{kind}", b"%s of %d" % (kind.encode(), n)) for n in range(6) for kind in ("jpg", "txt")]
    path = write_tar(tmp_path / "0.tar", members)
    clean, whole = path.read_bytes(), indexed(path)
    assert whole == [(f"k{n}", ["jpg", "txt"]) for n in range(6)]
    found = []
    for number in range(200):
        generator = np.random.default_rng(number)
        start = int(generator.integers(0, len(clean) - 200))
        path.write_bytes(clean[:start] + generator.bytes(200) + clean[start + 200 :])
        found.append(indexed(path))
    refused = [each for each in found if each != whole]
    assert all(isinstance(each, str) and each.startswith(f"{path}: ") for each in refused)
    assert 50 < len(refused) < 200


# Images, whole; damaged files by the hundred


def decoder(**options: Any) -> SampleDecoder:
    return sample_decoder(**options)


def decode(data: bytes, **options: Any) -> torch.Tensor:
    return decoder(**options)(RawSample("s.tar", "k", {"png": data}, 0))["image"]


def png(
    width: int, height: int, *, bits: int = 8, colour: int = 2, chunks: list[tuple[bytes, bytes]] | None = None
) -> bytes:
    """A PNG of these chunks after its header, with right checksums."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *([(b"IDAT", b"")] if chunks is None else chunks), (b"IEND", b"")]
    rows = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(rows)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(10000, 10000), r"expected 1 to 50000000 pixels, got 10000 x 10000"),
        (png(20000, 20000), r"400000000 pixels"),
        (png(2**31 - 1, 2**31 - 1), r"pixels"),
        (png(0, 0), r"."),
        (png(0, 7), r"."),
        (png(48, 40), r"."),
        (png(48, 40, chunks=[(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 26))), (b"IDAT", b"")]), r"."),
        (png(48, 40, bits=16, colour=7), r"."),
        (b"GIF89a\1\0\1\0\0\0\0;", r"cannot identify"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"cannot identify"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"cannot identify"),
        (encode(photo(1), "TIFF"), r"cannot identify"),
        (encode(photo(1), "BMP"), r"cannot identify"),
    ],
)
def test_refused_images(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^s\.tar: sample 'k': .*{message}"):
        decode(data)


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.fromarray(np.full((20, 20), 32768, dtype=np.uint16)), (128, 128, 128)),  # clipped by Pillow to white
        (Image.new("L", (20, 20), 77), (77, 77, 77)),
        (Image.new("LA", (20, 20), (77, 255)), (77, 77, 77)),
        (Image.new("LA", (20, 20), (77, 0)), (255, 255, 255)),
        (Image.new("1", (20, 20), 1), (255, 255, 255)),
        (Image.new("RGB", (20, 20), (9, 99, 199)).convert("P", palette=Image.Palette.ADAPTIVE), (9, 99, 199)),
        (Image.new("RGBA", (20, 20), (9, 99, 199, 255)), (9, 99, 199)),
        (Image.new("RGBA", (20, 20), (9, 99, 199, 0)), (255, 255, 255)),
        (Image.new("RGBA", (20, 20), (0, 0, 0, 51)), (204, 204, 204)),
    ],
)
def test_every_mode_comes_out_in_its_colours(image: Image.Image, colour: tuple[int, int, int]) -> None:
    found = decode(encode(image))
    assert found.shape == (3, 16, 16)
    assert found.amax(dim=(1, 2)).tolist() == found.amin(dim=(1, 2)).tolist() == list(colour)


def test_a_cmyk_jpeg_comes_out_in_its_colours() -> None:
    found = decode(encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"))
    assert found.float().mean(dim=(1, 2)).tolist() == pytest.approx([255, 0, 0], abs=3)


def test_bytes_lost_in_a_jpeg_change_the_shards_digest(tmp_path: Path) -> None:
    """No decoder notices 20 zeroed bytes; the sha256 of the shard does."""
    data = bytearray(encode(photo(1, 200, 160), "JPEG"))
    digests = []
    for number, run in enumerate((bytes(data), bytes(data[:900] + bytes(20) + data[920:]))):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_tar(folder / "0.tar", [("a.jpg", run)])
        assert decoder()(open_shards(str(folder)).read(0)._replace(position=0))["image"].shape == (3, 16, 16)
        digests.append(write_manifest(folder)[0].digest)
    assert digests[0] != digests[1]


def test_damaged_files_never_crash_warn_or_hang() -> None:
    """400 of each format, as an image and as a mask, in a process that a crash would end."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-W", "error", mutations.__file__, "400"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = run.stdout.splitlines()[-1:]
    assert run.returncode == 0, f"{last}: {run.stderr}"
    found = json.loads(last[0])
    assert found["wrong"] == []
    assert found["slowest"] < 10
    for counts in found["outcomes"].values():
        assert sum(counts.values()) == 800
        assert min(counts["sample"], counts["refused"]) > 80  # the damage is neither nothing nor everything


def test_mutants_are_what_they_say() -> None:
    for kind, files in mutations.bases().items():
        for data in files:
            assert b"".join(mutations.pieces(data)) == data
            assert Image.open(io.BytesIO(data)).format == kind
        changed = [mutations.mutant(files, number) != files[number % len(files)] for number in range(200)]
        assert sum(changed) > 150
        assert mutations.mutant(files, 7) == mutations.mutant(files, 7)


def test_a_loader_lives_through_the_damaged_files(tmp_path: Path) -> None:
    """Through real shards and workers: as many samples come out as go in, none of them refused ones."""
    files = {kind: [mutations.mutant(clean, n) for n in range(40)] for kind, clean in mutations.bases().items()}
    members = [(f"{kind}{n}.{kind.lower()}", data) for kind, list_ in files.items() for n, data in enumerate(list_)]
    write_tar(tmp_path / "0.tar", members)
    shards = open_shards(str(tmp_path))
    good = set()
    for number in range(len(shards)):
        raw = shards.read(number)._replace(position=0)
        good |= {raw.key} if mutations.outcome(decoder(image_size=mutations.SIZE), raw.fields) != "refused" else set()
    stream = SampleStream(shards, SampleOrder(shards.counts), batch_size=4)
    options: dict[str, Any] = {"num_workers": 2, "position": lambda: 0, "folder": tmp_path, "max_bad_share": 1.0}
    batches = [batch for batch, _ in zip(StreamLoader(stream, decoder(), **options), range(30), strict=False)]
    assert {key for batch in batches for key in batch["__key__"]} == good
    assert all(batch["image"].shape == (4, 3, 16, 16) for batch in batches)
    assert [p for batch in batches for p in batch["position"].tolist()] == list(range(120))
