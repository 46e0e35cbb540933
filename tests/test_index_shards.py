"""index_shards: existing tars, only read; what is the same is not read again, what is bad is named."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from data_fixtures import encode, photo, photo_shards, write_tar
from PIL import Image

from datamodules import index_shards as index_command
from datamodules import index_shards as module
from datamodules.decode.mask_files import EMPTY, FULL
from datamodules.decode.reading import image_size
from datamodules.index_shards import NAMED_MASK, UNUSABLE, index_shards, main
from datamodules.shards.manifest import JOURNAL, index_path, load_index, parse_manifest, write_manifest
from datamodules.shards.shard_specs import find_tars, open_shards

JPEG = encode(photo(1), "JPEG")


def tars(folder: Path, count: int = 2) -> Path:
    """Tars 0.tar, 1.tar ... of two samples each."""
    folder.mkdir(parents=True)
    for number in range(count):
        write_tar(
            folder / f"{number}.tar", [(f"{number}a.jpg", JPEG), (f"{number}a.txt", b"t"), (f"{number}b.jpg", JPEG)]
        )
    return folder


def states(folder: Path) -> dict[str, tuple[int, int]]:
    found = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (state.st_mtime_ns, state.st_ino) for name, state in found.items()}


def test_in_place_beside_untouched_tars(tmp_path: Path) -> None:
    folder = tars(tmp_path / "s")
    before = states(folder)
    report = index_shards(str(folder))
    assert (len(report.shards), report.fresh, report.unreadable) == (2, 2, [])
    assert sorted(states(folder)) == ["0.index.json", "0.tar", "1.index.json", "1.tar", "manifest.json"]
    assert {name: states(folder)[name] for name in before} == before
    assert load_index(report.shards[1]).sizes == [(48, 40)] * 2
    shards = open_shards(str(folder))
    assert [shards.read(number).key for number in range(4)] == ["0a", "0b", "1a", "1b"]
    write_manifest(folder, measure=image_size)
    assert open_shards(str(folder)).fingerprint == shards.fingerprint


def test_make_shards_and_index_shards_agree(tmp_path: Path) -> None:
    folder = photo_shards(tmp_path, 6)
    manifest, indexes = (folder / "manifest.json").read_text(), [load_index(s) for s in open_shards(str(folder)).shards]
    report = index_shards(str(folder))
    assert (folder / "manifest.json").read_text() == manifest
    assert [load_index(shard) for shard in report.shards] == indexes


def test_into_a_folder_for_tars_of_several(tmp_path: Path) -> None:
    for name in ("x", "y"):
        tars(tmp_path / name)
    (tmp_path / "list.txt").write_text("x\n\ny/{0..1}.tar\n")
    before = states(tmp_path / "x"), states(tmp_path / "y")
    report = index_shards(str(tmp_path / "list.txt"), tmp_path / "out")
    assert (states(tmp_path / "x"), states(tmp_path / "y")) == before
    assert [shard.path for shard in report.shards] == [
        str(tmp_path / f) for f in ("x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar")
    ]
    names = [row.name for row in parse_manifest((tmp_path / "out" / "manifest.json").read_text(), "")]
    assert len({name[-5:] for name in names}) == 2
    assert len(set(names)) == 4
    assert len(list((tmp_path / "out").glob("*.index.json"))) == 4
    assert open_shards(str(tmp_path / "out")).read(5).fields == {"jpg": JPEG}


def test_in_place_needs_one_whole_folder(tmp_path: Path) -> None:
    tars(tmp_path / "x")
    with pytest.raises(ValueError, match="expected all tars of one local folder, got others; name a folder OUT"):
        index_shards(str(tmp_path / "x" / "0.tar"))
    assert "path" not in index_shards(str(tmp_path / "x" / "*.tar"), tmp_path / "x").shards[0].path
    assert json.loads((tmp_path / "x" / "manifest.json").read_text())["shards"][0].keys() == {
        "name",
        "count",
        "bytes",
        "sha256",
    }


def test_unfinished_and_read_only_folders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tars(tmp_path / "x")
    (folder / JOURNAL).touch()
    with pytest.raises(ValueError, match="make_shards was interrupted here; run it again"):
        index_shards(str(folder))
    (folder / JOURNAL).unlink()
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="x: expected a folder to write into; name a folder OUT"):
        index_shards(str(folder))


def test_only_what_has_changed_is_read_again(tmp_path: Path) -> None:
    folder = tars(tmp_path / "x", 3)
    assert index_shards(str(folder)).fresh == 3
    assert index_shards(str(folder)).fresh == 0
    os.utime(folder / "0.tar", ns=(1, 1))
    assert index_shards(str(folder)).fresh == 1
    write_tar(folder / "1.tar", [("c.jpg", JPEG)])
    report = index_shards(str(folder))
    assert (report.fresh, report.shards[1].count) == (1, 1)
    assert index_shards(str(folder), ignore=["npy"]).fresh == 3
    content = index_path(folder / "2.tar").read_text()
    index_path(folder / "2.tar").write_text(content[: len(content) // 2])
    assert index_shards(str(folder), ignore=["npy"]).fresh == 1


def test_goes_on_after_an_end_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tars(tmp_path / "x", 3)
    real = index_command._scan

    def scan(place: index_command.TarPlace, ignore: frozenset[str]) -> Any:
        if place.name == "1.tar":
            raise KeyboardInterrupt
        return real(place, ignore)

    with monkeypatch.context() as patch:
        patch.setattr(index_command, "_scan", scan)
        assert main([str(folder), "--workers", "1"]) == 130
    assert not (folder / "manifest.json").exists()
    assert index_shards(str(folder)).fresh == 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", JPEG), ("a.pickle", b"")], "member 'a.pickle': .*kinds that execute are always refused"),
        ([("a.jpg", JPEG), ("a.x.pkl", b"")], "member 'a.x.pkl': .*kinds that execute are always refused"),
        ([("a.jpg", JPEG), ("b.jpg", b""), ("a.txt", b"")], "member 'a.txt': key 'a' is duplicate or not in one piece"),
        ([("a.txt", b"")], "expected one image .* got none, but members left aside: 1 without an image"),
    ],
)
def test_bad_tars_are_named(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(ValueError, match=rf"0\.tar: {message}"):
        index_shards(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]


def test_ignored_members_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [("a.jpg", JPEG), ("a.embedding.bin", b"x"), ("a.txt", b"t"), ("b.NPY", b""), ("b.jpg", JPEG)]
    write_tar(tmp_path / "0.tar", members)
    assert main([str(tmp_path), "--ignore", "npy,.embedding.bin", "--workers", "1"]) == 0
    assert capsys.readouterr().out == (
        "2 samples in 1 shard, 0 of them indexed before\n  captions 1, masks 0, labels 0, json 0\n"
        "2 left aside\n  2 ignored, as asked for: 0.tar: a.embedding.bin, 0.tar: b.NPY\n"
    )
    shards = open_shards(str(tmp_path))
    assert [shards.read(number).fields for number in range(2)] == [{"jpg": JPEG, "txt": b"t"}, {"jpg": JPEG}]


def test_the_account_tells_of_odd_masks(tmp_path: Path) -> None:
    masks = [Image.new("L", (48, 40), 255 * (number == 1)) for number in range(3)]
    masks[2].paste(255, (0, 0, 10, 10))
    members = [
        (f"{n}.{kind}", data)
        for n, mask in enumerate(masks)
        for kind, data in (("jpg", JPEG), ("mask.png", encode(mask)))
    ]
    write_tar(tmp_path / "0.tar", [*members, ("3.jpg", JPEG), ("3.mask.png", b"none")])
    for _ in range(2):
        account = index_shards(str(tmp_path)).account
        assert (account.taken, account.found["masks"]) == (4, 4)
        assert account.noted == {EMPTY: (1, ["0.tar: 0"]), FULL: (1, ["0.tar: 1"]), UNUSABLE: (1, ["0.tar: 3"])}


def test_the_account_tells_what_is_left_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also when no tar is read again."""
    write_tar(tmp_path / "0.tar", [("d/._a.jpg", b""), ("d/a.jpg", JPEG), ("d/a.xmp", b""), ("d/b.mask.png", b"")])
    write_tar(tmp_path / "1.tar", [("d/c.jpg", JPEG), ("d/c.xmp", b"")])
    for before in (0, 2):
        assert main([str(tmp_path), "--workers", "1"]) == 0
        assert capsys.readouterr().out == (
            f"2 samples in 2 shards, {before} of them indexed before\n  captions 0, masks 0, labels 0, json 0\n"
            "4 left aside\n  1 hidden or of the system: 0.tar: d/._a.jpg\n"
            "  2 not used, ending in .xmp: 0.tar: d/a.xmp, 1.tar: d/c.xmp\n"
            "  1 without an image of their name: 0.tar: d/b.mask.png\n"
        )
    assert [shard.aside for shard in open_shards(str(tmp_path)).shards] == [3, 1]


@pytest.mark.parametrize(
    ("ignore", "message"),
    [
        (["pkl"], r"got \['pkl'\]: kinds that execute are always refused"),
        (["a.PTH"], r"got \['a\.pth'\]: kinds that execute"),
        ([""], r"got \[''\]"),
        (["txt"], r"without a use here, got \['txt'\]"),
    ],
)
def test_what_cannot_be_ignored(tmp_path: Path, ignore: list[str], message: str) -> None:
    write_tar(tmp_path / "0.tar", [("a.jpg", JPEG), ("a.pkl", b"")])
    with pytest.raises(ValueError, match=f"ignore: expected suffixes .*{message}"):
        index_shards(str(tmp_path), ignore=ignore)


def test_keep_going_lists_all_bad_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tars(tmp_path / "x", 4)
    (folder / "1.tar").write_bytes(b"no tar")
    (folder / "3.tar").write_bytes((folder / "3.tar").read_bytes()[:2048])
    assert main([str(folder), "--workers", "1"]) == 1
    message = capsys.readouterr().err
    assert "1.tar: expected an uncompressed tar" in message
    assert "stopped at this tar; --keep-going looks at all of them" in message
    assert "3.tar" not in message
    assert main([str(folder), "--keep-going", "--workers", "2"]) == 1
    out, message = capsys.readouterr()
    assert out.startswith("4 samples in the tars that can be used\n")
    assert "\n2 refused\n" in out
    assert "2 of 4 tars cannot be used:\n" in message
    assert message.index("1.tar: expected an uncompressed tar") < message.index("3.tar: the tar is corrupt, cut short")
    assert not (folder / "manifest.json").exists()
    assert index_path(folder / "2.tar").exists()


def test_images_without_a_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "0.tar", [("a.jpg", JPEG), ("b.jpg", b"no image"), ("b.txt", b"")])
    assert main([str(tmp_path), "--workers", "1"]) == 0
    assert "no image size: 0.tar: b\n" in capsys.readouterr().err
    assert load_index(open_shards(str(tmp_path)).shards[0]).sizes == [(48, 40), (0, 0)]
    for _ in range(2):  # also when the index file is used again
        assert main([str(tmp_path), "--strict", "--workers", "1"]) == 1
        assert "0.tar: member of 'b' (jpg, txt): expected an image" in capsys.readouterr().err


def test_a_tar_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tars(tmp_path / "x", 1)
    real = index_command._scan

    def scan(place: index_command.TarPlace, ignore: frozenset[str]) -> Any:
        os.utime(place.address, ns=(5, 5))
        return real(place, ignore)

    monkeypatch.setattr(index_command, "_scan", scan)
    with pytest.raises(ValueError, match=r"0\.tar: has changed while it was read"):
        index_shards(str(folder))


def test_workers_agree(tmp_path: Path) -> None:
    folder = tars(tmp_path / "x", 5)
    one, two = (index_shards(str(folder), tmp_path / str(n), workers=n) for n in (1, 2))
    assert (tmp_path / "1" / "manifest.json").read_text() == (tmp_path / "2" / "manifest.json").read_text()
    assert [load_index(shard) for shard in one.shards] == [load_index(shard) for shard in two.shards]


def test_specs(tmp_path: Path) -> None:
    assert find_tars("http://h/{0..2}.tar") == [f"http://h/{n}.tar" for n in range(3)]
    (tmp_path / "l.txt").write_text("https://h/a.tar\n")
    assert find_tars(str(tmp_path / "l.txt")) == ["https://h/a.tar"]
    for spec in ("pipe:cat x.tar", "file:///x.tar", "ftp://h/x.tar"):
        with pytest.raises(ValueError, match=r"expected local tars or URLs of http, https, s3 or gs"):
            find_tars(spec)
    with pytest.raises(ValueError, match=r"expected URLs only, got \['pipe:x'\]"):
        find_tars("https://h/a.tar::pipe:x")
    with pytest.raises(ValueError, match=r"nothing found at .*no-2\.tar"):
        find_tars(f"{tmp_path}/no-{{2..3}}.tar")
    with pytest.raises(ValueError, match="no tars there"):
        find_tars(str(tmp_path))
    tars(tmp_path / "x")
    with pytest.raises(ValueError, match=r"expected every tar once, got \['.*0\.tar'\] more than once"):
        index_shards(f"{tmp_path}/x/{{0,0}}.tar", tmp_path / "out")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files; tells nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The URL of a server of `tmp_path`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_remote_tars(tmp_path: Path, address: str) -> None:
    folder = tars(tmp_path / "x", 2)
    report = index_shards(f"{address}/x/{{0..1}}.tar", tmp_path / "out")
    here = index_shards(str(folder))
    assert [shard.path for shard in report.shards] == [f"{address}/x/0.tar", f"{address}/x/1.tar"]
    assert [(s.count, s.bytes, s.digest) for s in report.shards] == [(s.count, s.bytes, s.digest) for s in here.shards]
    assert [load_index(shard) for shard in report.shards] == [load_index(shard) for shard in here.shards]
    assert index_shards(f"{address}/x/{{0..1}}.tar", tmp_path / "out").fresh == 0
    with pytest.raises(ValueError, match=r"x/7\.tar: HTTP 404"):
        index_shards(f"{address}/x/7.tar", tmp_path / "out")
    with pytest.raises(ValueError, match="name a folder OUT"):
        index_shards(f"{address}/x/0.tar")


def test_help_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    output = capsys.readouterr().out
    assert "inpaint shards index SHARDS [OUT]" in output
    assert "--keep-going" in output


def test_photos_that_are_named_as_masks_are_told(tmp_path: Path) -> None:
    names = ["a.jpg", "a_mask.jpg", "b/c.jpg", "b/masks/c.jpg", "z.jpg"]
    write_tar(tmp_path / "0.tar", [(name, encode(photo(1), "JPEG")) for name in names])
    noted = index_shards(str(tmp_path)).account.noted
    assert noted == {NAMED_MASK: (2, ["0.tar: a_mask", "0.tar: b/masks/c"])}
