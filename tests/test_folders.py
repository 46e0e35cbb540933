"""A folder of photos: what is gone into, what is a photo, and that all else is counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from datamodules.account import HIDDEN, Account
from datamodules.writing.folders import LINKED, find_photos, walk
from datamodules.writing.sidecars import NO_PHOTO, SPARE, TWICE, MaskPlaces


def plant(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def photos(root: Path, masks: str | None = None) -> tuple[dict[str, dict[str, str]], Account]:
    account = Account()
    places = None if masks is None else MaskPlaces(masks, root)
    found = find_photos(dict(sorted(walk(root, account))), places, (), account)
    if places is not None:
        places.count_unused(account, whole=True)
    assert account.refused == []
    return {str(path): {kind: str(file) for kind, file in beside.items()} for path, beside in found}, account


def test_hidden_and_system_files_are_left_aside_and_counted(tmp_path: Path) -> None:
    plant(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".thumbnails/b.jpg", "@eaDir/a.jpg")
    plant(tmp_path, "sub/.ipynb_checkpoints/c.jpg", "__MACOSX/d.jpg", "sub/e.png", "~$f.jpg")
    found, account = photos(tmp_path)
    assert found == {"a.jpg": {}, "sub/e.png": {}}
    names = [".DS_Store", "._a.jpg", ".thumbnails/"]
    assert account.aside == {HIDDEN: (9, names)}


def test_links_are_followed_without_loops(tmp_path: Path) -> None:
    root = plant(tmp_path / "root", "a.jpg", "sub/b.jpg")
    plant(tmp_path / "other", "c.jpg", "deep/d.jpg")
    (root / "linked").symlink_to(tmp_path / "other")
    (root / "again").symlink_to(tmp_path / "other")
    (root / "sub" / "up").symlink_to(root)
    (root / "into").symlink_to(root / "sub")
    (tmp_path / "other" / "back").symlink_to(tmp_path)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    account = Account()
    found = {str(folder / name) for folder, names in walk(root, account) for name in names}
    assert found == {"a.jpg", "sub/b.jpg", "again/c.jpg", "again/deep/d.jpg", "gone"}
    assert account.aside == {LINKED: (5, ["into/", "linked/", "sub/up/"])}


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "a/b.jpg", "c.jpg")
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if folder.name == "a":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    account = Account()
    assert list(walk(tmp_path, account)) == [(Path(), ["c.jpg"])]
    assert account.refused == [f"{tmp_path}/a: folder cannot be read: Permission denied"]


def test_what_is_not_used_is_counted_by_its_ending(tmp_path: Path) -> None:
    plant(tmp_path, "a.jpg", "a.xmp", "b.XMP", "readme.txt", "Makefile", "c.cr2", "d.svg", "e.mask.png")
    _, account = photos(tmp_path)
    assert account.aside == {
        "not used, without an ending": (1, ["Makefile"]),
        "not used, ending in .xmp": (2, ["a.xmp", "b.XMP"]),
        "a .cr2 picture, which is not read (save it as PNG or JPEG)": (1, ["c.cr2"]),
        "a .svg picture, which is not read (save it as PNG or JPEG)": (1, ["d.svg"]),
        "not used, ending in .txt": (1, ["readme.txt"]),
        NO_PHOTO: (1, ["e.mask.png"]),
    }


@pytest.mark.parametrize(
    ("mask", "photo", "pattern"),
    [
        ("x_mask.png", "x.jpg", "{name}_mask*.png"),
        ("x_mask001.png", "x.png", "{name}_mask*.png"),
        ("x-mask.png", "X.png", "{name}-mask*.png"),
        ("mask_x.jpg", "x.jpg", "mask_{name}.jpg"),
        ("masks/x.png", "x.png", "masks/{name}.png"),
        ("Mask/x.png", "x.jpg", "Mask/{name}.png"),
        ("masks/x_mask.gif", "images/x.jpg", "../masks/{name}_mask*.gif"),
        ("train_masks/x.png", "train/x.jpg", "../train_masks/{name}.png"),
        ("masks/a/x.png", "images/a/x.jpg", "../../masks/a/{name}.png"),
    ],
)
def test_masks_by_their_names_are_no_photos_and_the_hint_takes_them(
    mask: str, photo: str, pattern: str, tmp_path: Path
) -> None:
    plant(tmp_path, mask, photo)
    found, account = photos(tmp_path)
    assert found == {photo: {}}
    assert account.aside == {f"named as a mask; --masks '{pattern}' takes such": (1, [mask])}
    assert photos(tmp_path, pattern)[0] == {photo: {"mask": mask}}


def test_photos_that_only_sound_like_masks_are_photos(tmp_path: Path) -> None:
    plant(tmp_path, "x_mask.png", "masks/y.png", "masks/z.png", "bitmask.png", "bit.png")
    assert set(photos(tmp_path)[0]) == {"x_mask.png", "masks/y.png", "masks/z.png", "bitmask.png", "bit.png"}


def test_a_folder_of_masks(tmp_path: Path) -> None:
    plant(tmp_path / "photos", "x.jpg", "x.mask.png", "sub/x.jpg", "masks/x.png", "masks/sub/X.PNG", "masks/new/n.png")
    found, account = photos(tmp_path / "photos", str(tmp_path / "photos" / "masks"))
    assert found == {"x.jpg": {"mask": "masks/x.png"}, "sub/x.jpg": {"mask": "masks/sub/X.PNG"}}
    assert account.aside == {TWICE: (1, ["x.mask.png"])}
    plant(tmp_path / "elsewhere", "x.png")
    found, _ = photos(tmp_path / "photos", str(tmp_path / "elsewhere"))
    assert found["x.jpg"] == {"mask": "../elsewhere/x.png"}


def test_several_masks_and_masks_of_nothing_are_told(tmp_path: Path) -> None:
    plant(tmp_path, "x.png", "x_mask000.png", "x_mask001.png", "y_mask.png")
    found, account = photos(tmp_path, "{name}_mask*.png")
    assert found == {"x.png": {"mask": "x_mask000.png"}}
    assert account.aside == {SPARE: (1, ["x_mask001.png"]), NO_PHOTO: (1, ["y_mask.png"])}


def test_masks_that_are_not_there_are_refused(tmp_path: Path) -> None:
    plant(tmp_path, "x.png")
    with pytest.raises(ValueError, match=r"masks: expected a folder, or a pattern with \{name\} .* got 'nowhere'"):
        photos(tmp_path, "nowhere")
    with pytest.raises(ValueError, match="masks: expected a mask of at least one photo, found none"):
        photos(tmp_path, "masks/{name}.png")
