"""Shard specs: every way to name shards, and what is not one."""

from pathlib import Path

import pytest
from data_fixtures import Halves, photo, write_tar

from datamodules import WebDatasetDataModule
from datamodules.index_shards import find_tars
from datamodules.shards import shard_specs
from datamodules.shards.manifest import write_manifest
from datamodules.shards.shard_specs import aside_line, find_shards, open_shards


def test_specs(tmp_path: Path) -> None:
    for number in range(4):
        write_tar(tmp_path / f"t-{number:02d}.tar", [(f"{number}.jpg", b"")])

    def names(spec: str | list[str]) -> list[str]:
        return [Path(shard.path).stem for shard in find_shards(spec)]

    assert names(str(tmp_path)) == names(f"{tmp_path}/t-*.tar") == names(f"{tmp_path}/t-{{00..03}}.tar")
    assert names(str(tmp_path / "t-01.tar")) == ["t-01"]
    assert names([f"{tmp_path}/t-{{03,00}}.tar", f"{tmp_path}/t-02.tar"]) == ["t-03", "t-00", "t-02"]


def test_embedded_specs_lie_beside_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    write_tar(tmp_path / "train" / "0.tar", [("a.jpg", b""), ("b.jpg", b"")])
    monkeypatch.setattr(shard_specs, "_EMBEDDED", tmp_path)
    assert len(open_shards("embedded:train")) == 2
    with pytest.raises(ValueError, match=r"shards .*val'?: nothing found at"):
        find_shards("embedded:val")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("pipe:cat x.tar", "pipe: is not supported: a pipe runs a shell command"),
        ("file:///data/x.tar", "file: is not supported: write local files as paths"),
        ("hf://x", "hf: is not supported: download the files first, or use their https addresses"),
        ("ftp://host/x.tar", "ftp: is not supported"),
        ("https:x.tar", "https: is not supported"),
    ],
)
def test_other_schemes_are_refused(spec: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^shards '{spec}': expected a local folder, .* {reason}$"):
        find_shards(spec)


@pytest.mark.parametrize("more", ["pipe:cat x.tar", "x.tar"])
def test_a_url_cannot_hide_another_address(more: str) -> None:
    with pytest.raises(ValueError, match="nothing found at"):  # taken for local paths
        find_shards(f"{{{more},https://host}}/x.tar")
    with pytest.raises(ValueError, match=f"expected URLs only, got '{more}'"):
        find_shards(f"https://127.0.0.1:1/{{1..0}}.tar::{more}")


def test_nothing_found_says_where(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing found at \['.*no-1\.tar'\]"):
        find_shards(f"{tmp_path}/no-{{1..1}}.tar")
    with pytest.raises(ValueError, match=rf"no manifest\.json and no \*\.tar in {tmp_path}"):
        find_shards(str(tmp_path))


def test_pictures_are_no_shards(tmp_path: Path) -> None:
    folder = tmp_path / "my photos"
    (folder / "sub").mkdir(parents=True)
    photo(1).save(folder / "sub" / "a.JPG")
    (tmp_path / "list.csv").write_text("path\nmy photos/sub/a.JPG\n")
    advice = r"make shards of pictures with: inpaint shards make {} FOLDER, then name FOLDER here"
    for find in (find_shards, find_tars):
        with pytest.raises(
            ValueError, match=r"no (manifest.json and no \*.tar|tars)" + ".*" + advice.format("'.*my photos'")
        ):
            find(str(folder))
    with pytest.raises(ValueError, match=r"expected a tar of samples, got .*" + advice.format("'.*sub'")):
        find_shards(f"{folder}/sub/*")
    with pytest.raises(ValueError, match=r"list\.csv': expected a tar of samples, .*" + advice.format(r".*list\.csv")):
        find_shards(str(tmp_path / "list.csv"))


def test_no_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [])
    with pytest.raises(ValueError, match=r"expected at least one sample, got none in .*0\.tar"):
        open_shards(str(tmp_path))


def test_what_is_left_aside_is_told_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With kinds where the tars were just read, else as a count with the command that tells more."""
    for number, more in enumerate([["._0.jpg", "0.npy"], [".DS_Store"], []]):
        write_tar(tmp_path / f"{number}.tar", [(f"{number}.jpg", b""), *((name, b"") for name in more)])
    told = "data.x: 3 members of 2 tars are no part of a sample and left aside"
    assert aside_line(find_shards(str(tmp_path)), "data.x") == (
        f"{told}: 2 hidden or of the system, 1 not used, ending in .npy"
    )
    write_manifest(tmp_path)
    assert aside_line(find_shards(str(tmp_path)), "data.x") == f"{told}; inpaint shards index names them"
    assert aside_line(find_shards(str(tmp_path / "2.tar")), "data.x") == ""
    data = WebDatasetDataModule(str(tmp_path), batch_size=1, image_size=32, mask_generator=Halves())
    with caplog.at_level("INFO"):
        assert len(data.train_set) == 3
    assert "data.train_shards: 3 members of 2 tars are no part of a sample" in caplog.text
