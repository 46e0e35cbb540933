"""Aspect ratios: of upright images, by sample number, from the indexes of shards that make_shards wrote."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from data_fixtures import encode, exif_turned, photo, write_tar

from datamodules.decode.reading import image_size
from datamodules.order.bucket_order import AspectRatios
from datamodules.shards.manifest import write_manifest
from datamodules.shards.shard_specs import open_shards

SIZES = [(48, 40), (40, 48), (30, 30), (64, 16), (16, 64)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of images of these sizes, and a third of one that is no image."""
    members = [(f"p{number}.jpg", encode(photo(number, *size), "JPEG")) for number, size in enumerate(SIZES)]
    write_tar(tmp_path / "0.tar", members[:2])
    write_tar(tmp_path / "1.tar", members[2:])
    write_tar(tmp_path / "2.tar", [("broken.jpg", b"\xff\xd8 no header")])
    write_manifest(tmp_path, measure=image_size)
    return tmp_path


def test_width_to_height_by_number(folder: Path) -> None:
    aspects = AspectRatios(open_shards(str(folder)))
    expected = torch.tensor([w / h for w, h in SIZES])
    assert aspects(torch.arange(5)).equal(expected)
    mixed_up = torch.tensor([4, 0, 3, 3, 1])
    assert aspects(mixed_up).equal(expected[mixed_up])
    assert aspects(mixed_up).dtype == torch.float32


def test_an_unreadable_image_is_square(folder: Path) -> None:
    assert AspectRatios(open_shards(str(folder)))(torch.tensor([5, 4])).tolist() == [1.0, 0.25]


def test_a_rotated_photo_is_upright(tmp_path: Path) -> None:
    picture = photo(0, 48, 24)
    write_tar(tmp_path / "0.tar", [("p.jpg", encode(picture, "JPEG", exif=exif_turned()))])
    write_manifest(tmp_path, measure=image_size)
    assert AspectRatios(open_shards(str(tmp_path)))(torch.tensor([0])).tolist() == [0.5]


def test_only_the_shards_in_question_are_read(folder: Path) -> None:
    (folder / "1.index.json").write_text("not an index")
    assert AspectRatios(open_shards(str(folder)))(torch.tensor([0, 1, 5])).shape == (3,)


def test_pickles(folder: Path) -> None:
    aspects = AspectRatios(open_shards(str(folder)))
    samples = torch.arange(5)
    assert pickle.loads(pickle.dumps(aspects))(samples).equal(aspects(samples))


def test_an_index_without_sizes_is_refused(folder: Path) -> None:
    path = folder / "1.index.json"
    content = json.loads(path.read_text())
    del content["sizes"]
    path.write_text(json.dumps(content))
    aspects = AspectRatios(open_shards(str(folder)))
    message = (
        r"data\.order\.bucket_step: .*1\.tar: expected image sizes in its index, got none; write it with inpaint shards"
    )
    with pytest.raises(ValueError, match=message):
        aspects(torch.tensor([0, 3]))
