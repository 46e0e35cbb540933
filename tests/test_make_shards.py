"""make_shards: the same bytes for the same input, and nothing left out in silence."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from data_fixtures import photo, photo_folder
from PIL import Image

from datamodules.images.image_sizes import image_size
from datamodules.make_shards import main, make_shards
from datamodules.own_masks.coco_masks import CocoMask
from datamodules.samples.sample_decoder import SampleDecoder
from datamodules.shards.manifest import JOURNAL, load_index, write_manifest
from datamodules.shards.shard_specs import open_shards
from datamodules.writing.source_lists import find_sources, make_key
from datamodules.writing.source_samples import Resize


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_bytes_captions_and_masks_are_copied(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 2)
    photo(5).convert("L").save(folder / "p001.mask.png")
    (folder / "sub").mkdir()
    photo(6).save(folder / "sub" / "my photo.v2.PNG")
    report = make_shards(folder, tmp_path / "out")
    assert report.skipped == []
    samples = [open_shards(str(tmp_path / "out")).read(number) for number in range(3)]
    assert [sample.key for sample in samples] == ["p000", "p001", "sub/my_photo_v2"]
    assert samples[0].fields == {
        "jpg": (folder / "p000.jpg").read_bytes(),
        "txt": b"photo 0\n",
    }
    assert samples[1].fields["mask.png"] == (folder / "p001.mask.png").read_bytes()
    assert samples[2].fields == {"png": (folder / "sub" / "my photo.v2.PNG").read_bytes()}


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 5)
    make_shards(folder, tmp_path / "a", samples_per_shard=2)
    (folder / "p003.jpg").touch()
    make_shards(folder, tmp_path / "b", samples_per_shard=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == [
        *(f"{number:06d}.{kind}" for number in range(3) for kind in ("index.json", "tar")),
        "manifest.json",
    ]
    with tarfile.open(tmp_path / "a" / "000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def test_shard_bytes_bounds_a_tar(tmp_path: Path) -> None:
    report = make_shards(photo_folder(tmp_path / "in", 6), tmp_path / "out", shard_bytes=6000)
    assert len(report.shards) > 1
    assert sum(shard.count for shard in report.shards) == 6


def test_a_list_of_files_is_relative_to_itself(tmp_path: Path) -> None:
    photo_folder(tmp_path / "in", 4)
    (tmp_path / "lists").mkdir()
    names = tmp_path / "lists" / "val.txt"
    names.write_text("../in/p003.jpg\n../in/p001.jpg\n\n")
    assert [source.key for source in find_sources(names)] == ["in/p001", "in/p003"]
    assert make_shards(names, tmp_path / "out").shards[0].count == 2


def test_resize_shrinks_upright_and_never_enlarges(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(1, 80, 40).save(folder / "turned.jpg", exif=exif)
    photo(1, 20, 10).save(folder / "small.jpg")
    make_shards(folder, tmp_path / "out", resize=Resize(short_side=20))
    shards = open_shards(str(tmp_path / "out"))
    assert shards.read(0).fields["jpg"] == (folder / "small.jpg").read_bytes()
    turned = Image.open(io.BytesIO(shards.read(1).fields["jpg"]))
    assert turned.size == (20, 40)
    assert turned.getexif().get(0x0112, 1) == 1


def test_resize_scale() -> None:
    assert Resize(short_side=50).scale(100, 200) == 0.5
    assert Resize(max_side=50).scale(100, 200) == 0.25
    assert Resize(short_side=500).scale(100, 200) == Resize().scale(100, 200) == 1.0


def test_keys() -> None:
    assert make_key("../a b/c.d.JPG") == "a_b/c_d"


def test_every_bad_image_is_named(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 3)
    (folder / "p000.jpg").write_bytes(b"not an image")
    (folder / "p002.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"(?s)2 of 3 images cannot be used.*p000\.jpg: cannot identify.*p002\.jpg"):
        make_shards(folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    report = make_shards(folder, tmp_path / "out", skip_bad=True)
    assert report.shards[0].count == 1
    assert len(report.skipped) == 2


def test_truncated_image_is_bad(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    data = (folder / "p000.jpg").read_bytes()
    (folder / "p000.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"p000\.jpg: (image file is truncated|cannot load)"):
        make_shards(folder, tmp_path / "out")


def test_colliding_keys(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    photo(1).save(folder / "p000.png")
    with pytest.raises(ValueError, match=r"p000\.png: same key as .*p000\.jpg: 'p000'; rename one"):
        find_sources(folder)


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none: expected a folder of images or a file that lists them"):
        find_sources(tmp_path / "none")
    with pytest.raises(ValueError, match="no images"):
        find_sources(tmp_path)
    (tmp_path / "list.txt").write_text("a.gif\n")
    with pytest.raises(ValueError, match=r"list\.txt: expected names of images .*got \['a\.gif'\]"):
        find_sources(tmp_path / "list.txt")


def test_out_with_shards_is_left_alone(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    make_shards(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="out: expected a folder without shards"):
        make_shards(folder, tmp_path / "out")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photo_folder(tmp_path / "in", 3)
    (folder / "p001.jpg").write_bytes(b"")
    assert main([str(folder), str(tmp_path / "out"), "--workers", "1"]) == 1
    assert "1 of 3 images cannot be used" in capsys.readouterr().err
    assert main([str(folder), str(tmp_path / "out"), "--skip-bad", "--short-side", "16", "--workers", "1"]) == 0
    output = capsys.readouterr()
    assert output.out == "2 samples in 1 shards, 1 skipped\n"
    assert "skipped: " in output.err


def test_help_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m datamodules.make_shards photos data/train" in capsys.readouterr().out


def test_masks_labels_and_annotations_come_along(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    labels = Image.new("L", (48, 40), 3)
    for name in ("p000.mask.jpg", "p000.label.png", "p000.seg.png"):
        labels.save(folder / name)
    (folder / "p000.json").write_text('{"annotations": []}')
    make_shards(folder, tmp_path / "out")
    fields = open_shards(str(tmp_path / "out")).read(0).fields
    assert {name: fields[name] for name in ("mask.jpg", "label.png", "seg.png", "json")} == {
        name: (folder / f"p000.{name}").read_bytes() for name in ("mask.jpg", "label.png", "seg.png", "json")
    }
    assert sorted(fields) == ["jpg", "json", "label.png", "mask.jpg", "seg.png", "txt"]


def test_polygons_of_a_shrunk_image_keep_their_frame(tmp_path: Path) -> None:
    """A polygon over the left half is still over the left half, also of a turned photo."""
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(1, 80, 40).save(folder / "turned.jpg", exif=exif)
    (folder / "turned.json").write_text('{"segmentation": [[0, 0, 20, 0, 20, 80, 0, 80]]}')
    make_shards(folder, tmp_path / "out", resize=Resize(short_side=20))
    raw = open_shards(str(tmp_path / "out")).read(0)
    content = json.loads(raw.fields["json"])
    assert (content["width"], content["height"]) == (40, 80)
    decoder = SampleDecoder(image_size=(40, 20), seed=0, augment=False, mask_sources=[CocoMask()])
    assert decoder(raw)["mask"][0].sum(dim=0).tolist() == [40] * 10 + [0] * 10


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p000.label.png", b"x", "cannot identify"),
        ("p000.mask.jpg", b"x", "cannot identify"),
        ("p000.json", b"[]", "expected an object in json"),
        ("p000.json", b"{", "Expecting property name"),
    ],
)
def test_what_lies_beside_is_checked(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"p000\.jpg: .*{message}"):
        make_shards(folder, tmp_path / "out")


def test_label_map_of_colours_is_bad(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    photo(1).save(folder / "p000.label.png")
    with pytest.raises(ValueError, match=r"p000\.jpg: expected a label map in a grey or palette PNG"):
        make_shards(folder, tmp_path / "out")


def test_index_knows_the_sizes_and_is_that_of_a_scan(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(1, 80, 40).save(folder / "turned.jpg", exif=exif)
    photo(1, 90, 30).save(folder / "wide.png")
    make_shards(folder, tmp_path / "out", samples_per_shard=3, resize=Resize(max_side=60))
    shards = open_shards(str(tmp_path / "out")).shards
    assert [load_index(shard).sizes for shard in shards] == [[(48, 40), (48, 40), (30, 60)], [(60, 20)]]
    before = contents(tmp_path / "out")
    write_manifest(tmp_path / "out", measure=image_size)
    assert contents(tmp_path / "out") == before


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 20)
    (folder / "p007.jpg").write_bytes(b"bad")
    reports = [
        make_shards(
            folder, tmp_path / str(workers), workers=workers, shard_bytes=9000, resize=Resize(30), skip_bad=True
        )
        for workers in (1, 2)
    ]
    assert len(reports[0].shards) > 3
    assert reports[0].skipped == reports[1].skipped != []
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_no_worker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        make_shards(photo_folder(tmp_path / "in", 1), tmp_path / "out", workers=0)


def test_a_table_gives_captions_masks_classes_and_more(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 3)
    for name in ("p000.mask.png", "own mask.jpg"):
        photo(7).convert("L").save(folder / name)
    (folder / "p000.json").write_text('{"annotations": []}')
    rows = [
        {"image": "p000.jpg", "text": "a caption", "mask": "own mask.jpg", "cls": 3, "author": "me", "year": 1999},
        {"image": "p001.jpg", "cls": 4},
    ]
    table = folder / "list.jsonl"
    table.write_text("\n".join(json.dumps(row) for row in rows))
    assert main([str(table), str(tmp_path / "out"), "--json-columns", "author,year", "--workers", "1"]) == 0
    first, second = (open_shards(str(tmp_path / "out")).read(number).fields for number in range(2))
    jpegs = [(folder / name).read_bytes() for name in ("p000.jpg", "own mask.jpg", "p001.jpg")]
    extra = first.pop("json")
    assert first == {"jpg": jpegs[0], "txt": b"a caption", "mask.jpg": jpegs[1], "cls": b"3"}
    assert json.loads(extra) == {"annotations": [], "author": "me", "year": 1999}
    assert second == {"jpg": jpegs[2], "txt": b"photo 1\n", "cls": b"4", "json": b'{"author": null, "year": null}'}


def test_columns_by_name_or_none(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    (folder / "list.csv").write_text("url,alt,caption,label\np000.jpg,other,first,cat\n")
    command = [str(folder / "list.csv"), str(tmp_path / "out"), "--image-column", "url", "--workers", "1"]
    assert main([*command, "--caption-column", "alt", "--label-column", ""]) == 0
    fields = open_shards(str(tmp_path / "out")).read(0).fields
    assert {name: fields[name] for name in fields if name != "jpg"} == {"txt": b"other"}


def test_missing_files_of_a_table_are_named_with_their_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    rows = "path,mask\ngone.jpg,\np000.jpg,\np001.jpg,gone.png\n"
    (folder / "list.csv").write_text(rows)
    photo(1).save(folder / "p001.jpg")
    assert main([str(folder / "list.csv"), str(tmp_path / "out"), "--workers", "1"]) == 1
    message = capsys.readouterr().err
    assert "2 of 3 images cannot be used" in message
    assert f"{folder}/list.csv row 1: {folder}/gone.jpg: [Errno 2] No such file" in message
    assert (
        f"{folder}/list.csv row 3: {folder}/p001.jpg: [Errno 2] No such file or directory: '{folder}/gone.png'"
        in message
    )


def test_a_full_disk_ends_the_command_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photo_folder(tmp_path / "in", 3)
    command = [str(folder), str(tmp_path / "out"), "--workers", "1", "--samples-per-shard", "1"]

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("datamodules.writing.shard_writer._HashedFile.write", full)
        assert main(command) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert main(command) == 0
    assert capsys.readouterr().out == "3 samples in 3 shards, 0 skipped\n"


def alive(session: int) -> list[int]:
    """The processes of a session, without those that have ended and wait to be noticed."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def feed(pipe: Path, data: bytes) -> None:
    """Give the process that opens a pipe for reading these bytes."""
    with pipe.open("wb") as file:
        file.write(data)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds orphans by /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_leaves_no_orphans_and_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """A worker waits for an image that comes through a pipe, so that the moment of the signal is certain."""
    folder, out = photo_folder(tmp_path / "in", 5), tmp_path / "out"
    pipe, last = folder / "q.jpg", (folder / "p004.jpg").read_bytes()
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "datamodules.make_shards", str(folder), str(out), "--workers", "2"]
    with subprocess.Popen(
        [*command, "--samples-per-shard", "2"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[1],
    ) as run:
        wait_for(lambda: (out / JOURNAL).exists() and (out / JOURNAL).read_text().count("\n") == 3)
        assert len(alive(run.pid)) > 3
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # as a terminal does
            feed(pipe, b"")
        else:
            os.kill(run.pid, number)
        _, message = run.communicate()
        wait_for(lambda: not alive(run.pid))
    assert run.returncode == (130 if number == signal.SIGINT else -number)
    assert ("stopped; the same command goes on" in message) == (number == signal.SIGINT)
    assert "Traceback" not in message
    left = (out / "000001.tar.part").stat().st_mtime_ns
    for target in (out, tmp_path / "whole"):
        with ThreadPoolExecutor() as threads:
            threads.submit(feed, pipe, last)
            make_shards(folder, target, samples_per_shard=2)
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "000001.tar").stat().st_mtime_ns == left
