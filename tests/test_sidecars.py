"""What lies beside a photo, by the names of one folder."""

from __future__ import annotations

import unicodedata

import pytest

from datamodules.writing.sidecars import NO_PHOTO, TWICE, Folder, mask_by_name, sort_folder


def test_usual_names_in_any_case() -> None:
    names = ["IMG_1.JPG", "IMG_1.TXT", "IMG_1.MASK.PNG", "b.jpeg", "b.caption", "b.cls", "b.Label.png", "b.seg.TIF"]
    assert sort_folder(names) == Folder(
        {
            "IMG_1.JPG": {"txt": "IMG_1.TXT", "mask": "IMG_1.MASK.PNG"},
            "b.jpeg": {"txt": "b.caption", "cls": "b.cls", "label": "b.Label.png", "seg": "b.seg.TIF"},
        },
        [],
    )


def test_a_name_in_another_case_or_another_spelling_of_an_accent() -> None:
    apart = unicodedata.normalize("NFD", "é")
    assert sort_folder(["Dog.jpg", "dog.txt"]).photos == {"Dog.jpg": {"txt": "dog.txt"}}
    assert sort_folder(["é.jpg", f"{apart}.txt"]).photos == {"é.jpg": {"txt": f"{apart}.txt"}}
    assert sort_folder(["A.jpg", "a.jpg", "a.txt"]).photos == {"A.jpg": {}, "a.jpg": {"txt": "a.txt"}}
    assert sort_folder(["A.jpg", "a.jpg", "a.TXT", "A.txt"]).photos == {
        "A.jpg": {"txt": "A.txt"},
        "a.jpg": {"txt": "a.TXT"},
    }


def test_the_whole_name_with_another_ending() -> None:
    assert sort_folder(["a.b.jpg", "a.b.jpg.txt", "a.txt"]) == Folder(
        {"a.b.jpg": {"txt": "a.b.jpg.txt"}}, [("a.txt", "")]
    )
    assert sort_folder(["a.jpg", "a.png", "a.txt", "a.png.json"]).photos == {
        "a.jpg": {"txt": "a.txt"},
        "a.png": {"txt": "a.txt", "json": "a.png.json"},
    }


def test_of_several_the_first_is_used_and_the_others_are_told() -> None:
    names = ["a.jpg", "a.TXT", "a.txt", "a.caption", "a.mask.jpg", "a.mask.png", "a.mask.gif"]
    folder = sort_folder(names)
    assert folder.photos == {"a.jpg": {"txt": "a.txt", "mask": "a.mask.png"}}
    assert {name for name, kind in folder.left if kind == TWICE} == {"a.TXT", "a.caption", "a.mask.jpg", "a.mask.gif"}


def test_what_belongs_to_no_photo_is_told() -> None:
    names = ["a.jpg", "readme.txt", "b.mask.png", "b.target.png", "a.xmp", "a.heic.zip", "c.mp4"]
    folder = sort_folder(names)
    assert sorted(folder.left) == [
        ("a.heic.zip", ""),
        ("a.xmp", ""),
        ("b.mask.png", NO_PHOTO),
        ("b.target.png", NO_PHOTO),
        ("c.mp4", ""),
        ("readme.txt", ""),
    ]
    assert sort_folder(["a.jpg", "m.png"], ["m.png"]) == Folder({"a.jpg": {}}, [])


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("x_mask.png", ("x", "{name}_mask*.png")),
        ("x_mask001.png", ("x", "{name}_mask*.png")),
        ("x-Mask-2.JPG", ("x", "{name}-Mask-*.JPG")),
        ("a b masks.bmp", ("a b", "{name} masks*.bmp")),
        ("x.mask07.png", ("x", "{name}.mask*.png")),
        ("mask_x.png", ("x", "mask_{name}.png")),
        ("mask.png", None),
        ("bitmask.png", None),
        ("x_mask.txt", None),
        ("x_masked.png", None),
    ],
)
def test_masks_by_their_names(name: str, found: tuple[str, str] | None) -> None:
    assert mask_by_name(name) == found
