"""The journal: SIGKILL before and inside every write of a run, and the same bytes in the end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from data_fixtures import contents, encode, photo, photo_folder

from datamodules.make_shards import make_shards
from datamodules.shards.manifest import JOURNAL, read_manifest
from datamodules.shards.shard_specs import find_shards
from datamodules.shards.tar_index import scan_tar
from datamodules.writing import shard_writer
from datamodules.writing.shard_writer import ShardJournal, ShardWriter

# Forks a run for every moment: the n-th call that changes the disk kills its process, half done if it is a write.
KILLER = """
import gc, os, signal, sys
from pathlib import Path
from datamodules.make_shards import make_shards
from datamodules.writing.shard_writer import ShardJournal
from datamodules.writing.shard_writer import _HashedFile

source, out = sys.argv[1], Path(sys.argv[2])
changes = [(os, "fsync"), (os, "replace"), (Path, "replace"), (Path, "unlink")]
changes += [(_HashedFile, "write"), (ShardJournal, "_append")]

def guard(owner, name, countdown):
    real = getattr(owner, name)
    def call(first, *rest, **options):
        countdown[0] -= 1
        if countdown[0]:
            # a killed process loses nothing that it wrote
            return None if name == "fsync" else real(first, *rest, **options)
        if name in ("write", "_append"):
            real(first, rest[0][: len(rest[0]) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, call)

def run(folder, kill_at):
    child = os.fork()
    if not child:
        countdown = [kill_at]
        for change in changes:
            guard(*change, countdown)
        make_shards(source, folder, samples_per_shard=2, skip_bad=True)
        os._exit(0)
    return os.waitpid(child, 0)[1]

make_shards(source, out / "0", samples_per_shard=2, skip_bad=True)  # loads all that the forks need
gc.freeze()
kill_at = 1
while run(out / f"{kill_at}", kill_at):
    if kill_at % 4 or run(out / f"{kill_at}", 5):  # a restart may be killed too
        assert run(out / f"{kill_at}", 10**9) == 0
    kill_at += 1
print(kill_at, flush=True)
os._exit(0)
"""


def bad_and_good(folder: Path) -> Path:
    photo_folder(folder, 5)
    (folder / "p001.jpg").write_bytes(b"bad")
    (folder / "p004.jpg").write_bytes(b"bad too")
    (folder / "p002.txt").unlink()
    (folder / "p003.txt").unlink()
    return folder


def test_killed_at_every_write(tmp_path: Path) -> None:
    source = bad_and_good(tmp_path / "in")
    make_shards(source, tmp_path / "whole", samples_per_shard=2, skip_bad=True)
    script = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", KILLER, str(source), str(tmp_path / "out")]
    result = subprocess.run(script, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    moments = int(result.stdout)
    assert moments > 30
    assert len(list((tmp_path / "out").iterdir())) == moments + 1
    for folder in (tmp_path / "out").iterdir():
        assert contents(folder) == contents(tmp_path / "whole"), folder


class Killed(BaseException):
    """Stands for a kill in this process."""


def interrupted(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, tars: int) -> None:
    """A run that ends when it would finish tar number `tars`."""
    real = ShardWriter.finish

    def finish(self: ShardWriter) -> object:
        if self.number == tars:
            raise Killed
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", finish)
        with pytest.raises(Killed):
            make_shards(source, out, samples_per_shard=2)


def test_journal_cut_at_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = photo_folder(tmp_path / "in", 5), tmp_path / "out"
    make_shards(source, tmp_path / "whole", samples_per_shard=2)
    interrupted(source, out, monkeypatch, 2)
    left = contents(out)
    journal = left[JOURNAL]
    for size in [*range(0, len(journal), 37), len(journal) - 1, len(journal)]:
        for path in out.iterdir():
            path.unlink()
        for name, data in left.items():
            (out / name).write_bytes(data[:size] if name == JOURNAL else data)
        make_shards(source, out, samples_per_shard=2)
        assert contents(out) == contents(tmp_path / "whole"), size


def test_finished_shards_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = photo_folder(tmp_path / "in", 6), tmp_path / "out"
    interrupted(source, out, monkeypatch, 2)
    assert sorted(path.name for path in out.glob("*.tar*")) == [f"00000{n}.tar.part" for n in range(3)]
    before = (out / "000000.tar.part").stat()
    with pytest.raises(ValueError, match="no manifest"):
        find_shards(str(out))
    assert len(make_shards(source, out, samples_per_shard=2).shards) == 3
    after = (out / "000000.tar").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not (out / JOURNAL).exists()


def test_a_reader_refuses_a_set_that_is_half_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = photo_folder(tmp_path / "in", 5), tmp_path / "out"
    real, states = Path.replace, []

    def replace(self: Path, target: Path) -> Path:
        if self.suffix == ".part":
            try:
                states.append(len(read_manifest(out)))
            except ValueError as error:
                states.append("interrupted" in str(error))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    make_shards(source, out, samples_per_shard=2)
    assert states == [True, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_shard": 3}, "samples_per_shard was 2, is 3"),
        ({"samples_per_shard": 2, "shard_bytes": 5}, "shard_bytes was 256000000, is 5"),
        ({"samples_per_shard": 2, "skip_bad": True}, "skip_bad was False, is True"),
    ],
)
def test_other_arguments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int], message: str
) -> None:
    source, out = photo_folder(tmp_path / "in", 5), tmp_path / "out"
    interrupted(source, out, monkeypatch, 1)
    left = contents(out)
    with pytest.raises(ValueError, match=rf"unfinished run with other arguments \({message}\); start it with the same"):
        make_shards(source, out, **options)  # type: ignore[arg-type]
    assert contents(out) == left


def test_changed_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = photo_folder(tmp_path / "in", 5), tmp_path / "out"
    interrupted(source, out, monkeypatch, 1)
    (source / "p003.txt").write_text("another")
    with pytest.raises(ValueError, match=r"other arguments \(contents was '.*', is '.*'\)"):
        make_shards(source, out, samples_per_shard=2)
    photo(9).save(source / "p009.jpg")
    with pytest.raises(ValueError, match=r"other arguments \(images was 5, is 6, contents was"):
        make_shards(source, out, samples_per_shard=2)


def test_another_pillow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = photo_folder(tmp_path / "in", 5), tmp_path / "out"
    interrupted(source, out, monkeypatch, 1)
    monkeypatch.setattr("datamodules.make_shards.PIL.__version__", "0.1")
    with pytest.raises(ValueError, match=r"\(pillow was '.*', is '0\.1'\)"):
        make_shards(source, out, samples_per_shard=2)


def test_a_lost_tar_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = photo_folder(tmp_path / "in", 5), tmp_path / "out"
    interrupted(source, out, monkeypatch, 2)
    (out / "000001.tar.part").write_bytes(b"")
    with pytest.raises(ValueError, match=r"000001\.tar\.part: expected \d+ bytes by make_shards\.journal, got \[0\]"):
        make_shards(source, out, samples_per_shard=2)


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from datamodules.writing.shard_writer import ShardJournal\n"
        "journal = ShardJournal(Path(sys.argv[1]), {}); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(ValueError, match="expected no other run there, got one that is still at work"):
            ShardJournal(tmp_path, {})
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    ShardJournal(tmp_path, {}).close()


def test_writer_knows_what_a_scan_finds(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 10**6, None)
    fields = {
        "jpg": encode(photo(1), "JPEG"),
        "mask.png": encode(photo(2)),
        "txt": b"",
        "json": b"{" + b" " * 600 + b"}",
    }
    for key in ("a", "d/" + "long" * 50, "z"):
        assert writer.write(key, fields, (48, 40)) is None
    name, written = writer.finish() or ("", None)
    assert (name, writer.finish()) == ("000000.tar", None)
    with (tmp_path / (name + shard_writer.PART)).open("rb") as file:
        found = scan_tar(file, name, measure=lambda data: (48, 40))
    assert found == written
    assert json.dumps(found.index) == json.dumps(written.index)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n", "line 1: expected JSON"),
        ("[]\n", "line 1: expected an object"),
        ('{"version": 1}\n', "line 1: arguments: expected a value, got none"),
        ('{"arguments": {}}\n{"row": {"name": "../x"}}\n', r"line 2: row\.name: expected a file name without a folder"),
        ('{"arguments": {}}\n' + "[" * 100_000 + "\n", "line 2: expected JSON, got one nested too deep"),
        ("\udcff\n", "line 1: expected JSON"),
    ],
)
def test_a_damaged_journal_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / JOURNAL).write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=rf"^{tmp_path / JOURNAL}, {message}.*; empty the folder$"):
        ShardJournal(tmp_path, {})
