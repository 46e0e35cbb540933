"""make_shards: the same bytes for the same input, and nothing left out in silence."""

import os
import signal
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from data_fixtures import contents, exif_turned, photo, photo_folder
from waiting import wait_until

from datamodules.decode.reading import image_size
from datamodules.make_shards import main, make_shards
from datamodules.shards.manifest import JOURNAL, load_index, write_manifest
from datamodules.shards.shard_specs import open_shards
from datamodules.writing.source_samples import Resize


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


def test_every_bad_image_is_named(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 3)
    (folder / "p000.jpg").write_bytes(b"not an image")
    (folder / "p002.txt").write_bytes(b"\xff")
    refused = (
        r"(?s)2 of 3 images cannot be used.*p000\.jpg: cannot be read as a picture.*p002\.txt: expected a text in U"
    )
    with pytest.raises(ValueError, match=refused):
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
    head, refused = output.out.split("1 refused\n")
    assert head == "2 photos taken, in 1 shard\n  captions 2, masks 0, labels 0, json 0\n"
    assert " ".join(refused.split()) == f"{folder}/p001.jpg: cannot be read as a picture"
    assert "skipped: " in output.err


def test_help_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "inpaint shards make photos data/train" in capsys.readouterr().out


def test_index_knows_the_sizes_and_is_that_of_a_scan(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 2)
    photo(1, 80, 40).save(folder / "turned.jpg", exif=exif_turned())
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
    assert capsys.readouterr().out.startswith("3 photos taken, in 3 shards\n")


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
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in a shell's background ignores it
        cwd=Path(__file__).parents[1],
    ) as run:
        wait_until(lambda: (out / JOURNAL).exists() and (out / JOURNAL).read_text().count("\n") == 3)
        assert len(alive(run.pid)) > 3
        if number == signal.SIGINT:
            os.killpg(run.pid, number)  # as a terminal does
            feed(pipe, b"")
        else:
            os.kill(run.pid, number)
        _, message = run.communicate()
        wait_until(lambda: not alive(run.pid))
    assert run.returncode == (130 if number == signal.SIGINT else -number), message
    assert ("stopped; the same command goes on" in message) == (number == signal.SIGINT)
    assert "Traceback" not in message
    left = (out / "000001.tar.part").stat().st_mtime_ns
    for target in (out, tmp_path / "whole"):
        with ThreadPoolExecutor() as threads:
            threads.submit(feed, pipe, last)
            make_shards(folder, target, samples_per_shard=2)
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "000001.tar").stat().st_mtime_ns == left


def test_shards_are_on_the_disk_before_the_journal_and_their_names_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tar whole, then its index, then its line in the journal; names and folder last."""
    steps: list[tuple[str, int]] = []
    fsync = os.fsync

    def recorded(file: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        steps.append((path.name, path.stat().st_size if path.name.endswith(".part") else 0))
        fsync(file)

    source = photo_folder(tmp_path / "photos", 3)
    monkeypatch.setattr(os, "fsync", recorded)
    make_shards(source, tmp_path / "out", samples_per_shard=2)
    sizes = {f"{path.name}.part": path.stat().st_size for path in (tmp_path / "out").glob("*.tar")}
    names = [name for name, _ in steps]
    journal = [number for number, name in enumerate(names) if name == JOURNAL]
    for number, part in enumerate(sorted(sizes), 1):
        at = steps.index((part, sizes[part]))
        assert at < names.index(f"{part[:6]}.index.json.tmp") < journal[number]
    assert names[-3:] == ["manifest.json.tmp", "out", "out"]
