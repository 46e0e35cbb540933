"""What becomes of an image and what lies beside it: masks, labels, annotations, resizing."""

import io
import json
from pathlib import Path

import pytest
from data_fixtures import exif_turned, photo, photo_folder, sample_decoder
from PIL import Image

from datamodules.account import RefusedError
from datamodules.decode.coco_masks import CocoMask
from datamodules.decode.mask_sources import FileMask, LabelMap
from datamodules.make_shards import make_shards
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
    decoder = sample_decoder(image_size=(40, 20), seed=0, augment=False, sources=[CocoMask()])
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


@pytest.mark.parametrize("size", [(80, 40), (40, 80)], ids=["stored", "upright"])
@pytest.mark.parametrize("kind", ["mask", "label", "polygon", "run lengths", "box"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("short", [None, 20])
def test_what_is_drawn_on_a_turned_photo_stays_where_it_is(
    size: tuple[int, int], kind: str, suffix: str, short: int | None, tmp_path: Path
) -> None:
    """The photo is turned to the right: the left half of the stored pixels is the upper half of what is seen."""
    photo(1, 80, 40).save(tmp_path / f"a.{suffix}", exif=exif_turned(6))
    width, height = (40, 40)  # of the half, on either
    drawn = Image.new("L", size)
    drawn.paste(1 if kind == "label" else 255, (0, 0, width, height))
    polygon = [0, 0, width, 0, width, height, 0, height]
    columns = [0, width * size[1]] if size == (80, 40) else [0, *[40] * 79, 40]
    columns += [40 * 80 - sum(columns)]
    annotation = {
        "polygon": {"segmentation": [polygon]},
        "run lengths": {"segmentation": {"counts": columns, "size": size[::-1]}},
        "box": {"bbox": [0, 0, width, height]},
    }
    if kind in ("mask", "label"):
        drawn.save(tmp_path / f"a.{kind}.png")
    else:
        content = {"annotations": [annotation[kind]], "width": size[0], "height": size[1]}
        (tmp_path / "a.json").write_text(json.dumps(content))
    make_shards(tmp_path, tmp_path / "out", resize=Resize(short_side=short))
    shards = open_shards(str(tmp_path / "out"))
    assert shards.index(0).sizes == [(20, 40) if short else (40, 80)]
    sources = {"mask": FileMask(), "label": LabelMap([1])}
    decoder = sample_decoder(image_size=(40, 20), seed=0, augment=False, sources=[sources.get(kind, CocoMask())])
    mask = decoder(shards.read(0))["mask"][0]
    assert mask.sum(dim=1).tolist() == [20] * 20 + [0] * 20


def test_what_has_another_shape_is_refused_when_it_is_packed(tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "in", 3)
    Image.new("L", (48, 30)).save(folder / "p000.mask.png")
    Image.new("L", (48, 30)).save(folder / "p001.label.png")
    (folder / "p002.json").write_text('{"shapes": [{"points": [[0, 0], [9, 0], [9, 9]]}], "imageWidth": 99}')
    with pytest.raises(RefusedError) as refused:
        make_shards(folder, tmp_path / "out")
    assert [Path(reason.partition(": ")[0]).name for reason in refused.value.account.refused] == [
        "p000.mask.png",
        "p001.label.png",
        "p002.json",
    ]
    assert all("expected a mask of the photo's shape, 48 x 40" in reason for reason in refused.value.account.refused)
