"""What becomes of an image and what lies beside it: masks, labels, annotations, resizing."""

import io
import json
from pathlib import Path

import pytest
from data_fixtures import exif_turned, photo, photo_folder
from PIL import Image

from datamodules.make_shards import make_shards
from datamodules.own_masks.coco_masks import CocoMask
from datamodules.samples.sample_decoder import SampleDecoder
from datamodules.shards.shard_specs import open_shards
from datamodules.writing.source_samples import Resize


def test_resize_shrinks_upright_and_never_enlarges(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    photo(1, 80, 40).save(folder / "turned.jpg", exif=exif_turned())
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
    photo(1, 80, 40).save(folder / "turned.jpg", exif=exif_turned())
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
        ("p000.label.png", b"x", "cannot be read as a picture"),
        ("p000.mask.jpg", b"x", "cannot be read as a picture"),
        ("p000.json", b"[]", "expected an object in json"),
        ("p000.json", b"{", "Expecting property name"),
    ],
)
def test_what_lies_beside_is_checked(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        make_shards(folder, tmp_path / "out")


def test_label_map_of_colours_is_bad(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 1)
    photo(1).save(folder / "p000.label.png")
    with pytest.raises(ValueError, match=r"p000\.label\.png: expected a label map in a grey or palette PNG"):
        make_shards(folder, tmp_path / "out")
