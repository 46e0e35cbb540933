"""COCO annotations: run lengths and polygons of one object agree; objects are chosen by the draw."""

import json
import math
import pickle
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from data_fixtures import encode, photo

from datamodules.decode.annotations import parse_annotations
from datamodules.decode.coco_masks import CocoMask
from datamodules.decode.mask_sources import MaskRequest
from datamodules.decode.reading import Turn

WIDTH, HEIGHT = 7, 6
BOX = [[2, 1, 5, 1, 5, 4, 2, 4]]  # rows 1 to 3, columns 2 to 4
COUNTS = {"counts": [13, 3, 3, 3, 3, 3, 14], "size": [HEIGHT, WIDTH]}
PACKED = {"counts": "=33000;", "size": [HEIGHT, WIDTH]}
BOX_POINTS = [[2, 1], [5, 1], [5, 4], [2, 4]]
CORNER = [[0, 0, 1, 0, 1, 1, 0, 1]]


def find(content: Any, source: CocoMask | None = None, draw: float = 0.0, **changes: Any) -> Any:
    fields = {"png": encode(photo(1, WIDTH, HEIGHT)), "json": json.dumps(content).encode()}
    mask = (source or CocoMask())(MaskRequest(fields, (WIDTH, HEIGHT), draw)._replace(**changes))
    return None if mask is None else (np.asarray(mask) == 255)


def boxed() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[1:4, 2:5] = True
    return mask


def annotations(*segmentations: Any) -> dict[str, Any]:
    return {"annotations": [{"segmentation": one, "category_id": i} for i, one in enumerate(segmentations)]}


@pytest.mark.parametrize("segmentation", [BOX, COUNTS, PACKED])
def test_one_object_in_every_form(segmentation: Any) -> None:
    assert np.array_equal(find({"segmentation": segmentation}), boxed())
    assert np.array_equal(find(annotations(segmentation)), boxed())


def test_parts_are_united_and_not_cut_out_of_each_other() -> None:
    parts = [[2, 1, 5, 1, 5, 3, 2, 3], [2, 2, 5, 2, 5, 4, 2, 4]]
    assert np.array_equal(find({"segmentation": parts}), boxed())


def test_polygons_of_another_resolution() -> None:
    double = [[2 * value for value in BOX[0]]]
    assert np.array_equal(find({"segmentation": double, "width": 2 * WIDTH, "height": 2 * HEIGHT}), boxed())


def test_run_lengths_keep_their_own_resolution() -> None:
    mask = find({"segmentation": {"counts": [0, 2], "size": [2, 1]}, "width": 99, "height": 99})
    assert mask.shape == (2, 1)


def test_the_draw_chooses() -> None:
    content = annotations(BOX, CORNER)
    assert np.array_equal(find(content, draw=0.49), boxed())
    assert np.argwhere(find(content, draw=0.5)).tolist() == [[0, 0]]
    assert np.argwhere(find(content, draw=1 - 2**-24)).tolist() == [[0, 0]]


def test_union_and_categories() -> None:
    content = annotations(PACKED, CORNER, {"counts": [0, 4], "size": [2, 2]})
    union = CocoMask([0, 1], union=True)
    assert find(content, union).sum() == boxed().sum() + 1
    assert find(content, CocoMask(union=True)).all()
    assert np.argwhere(find(content, CocoMask([1]))).tolist() == [[0, 0]]
    assert vars(pickle.loads(pickle.dumps(union))) == vars(union)


@pytest.mark.parametrize(
    ("content", "categories"),
    [
        ({"annotations": [{"bbox": [2, 1, 3, 3]}]}, None),
        ({"annotations": [{"segmentation": [], "bbox": [2, 1.0, 3, 3], "category_id": "7"}]}, [7]),
        ({"annotations": [{"segmentation": BOX, "category_id": "7"}]}, [7]),
        ({"annotations": [{"segmentation": BOX, "category_id": 7.0}, {"segmentation": CORNER}]}, ["7"]),
        ({"segmentation": BOX, "width": 7.0, "height": 6.0}, None),
        ({"segmentation": BOX, "width": None, "height": None}, None),
        ({"segmentation": {"counts": PACKED["counts"], "size": [6.0, 7.0]}}, None),
        ({"annotations": [{"segmentation": [[0, 0, 1, 1], *BOX]}]}, None),
        ({"annotations": [{"segmentation": [[0, 0, 1, 1]]}, {"segmentation": [[]]}, {"segmentation": BOX}]}, None),
        ({"shapes": [{"points": [[2, 1], [5, 1], [5, 4], [2, 4]]}], "imageWidth": 7, "imageHeight": 6}, None),
        ({"shapes": [{"points": [[5, 4], [2, 1]], "shape_type": "rectangle", "label": "cat"}]}, ["cat"]),
        (
            {"shapes": [{"points": [[10, 8], [4, 2]], "shape_type": "rectangle"}], "imageWidth": 14, "imageHeight": 12},
            None,
        ),
        ({"shapes": [{"points": [[0, 0], [1, 1]], "shape_type": "line"}, {"points": BOX_POINTS, "label": "7"}]}, [7]),
    ],
)
def test_other_ways_to_write_the_same_object(content: Any, categories: Any) -> None:
    assert np.array_equal(find(content, CocoMask(categories), draw=0.999), boxed())


def test_a_circle_has_its_area() -> None:
    circle = {"points": [[50, 40], [50, 60]], "shape_type": "circle"}
    assert find({"shapes": [circle]}, size=(100, 90)).sum() == pytest.approx(math.pi * 400, rel=0.01)


def test_what_is_left_out_is_told() -> None:
    content = {
        "annotations": [{"segmentation": [[0, 0, 1, 1], *BOX]}],
        "shapes": [{"points": [], "shape_type": "line"}],
    }
    found = parse_annotations(json.dumps(content).encode())
    assert found.left_out == ["outlines of fewer than three points", "LabelMe shapes of the type 'line'"]
    assert len(found.objects) == 1


def test_numbers_do_not_choose_among_names() -> None:
    shapes = {"shapes": [{"points": BOX_POINTS, "label": "cat"}]}
    with pytest.raises(ValueError, match=r"category_ids: expected the categories' names, .* such as 'cat', got \[7\]"):
        find(shapes, CocoMask([7]))
    assert find(shapes, CocoMask(["dog"])) is None


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"caption": "a", "width": None},
        {"annotations": []},
        {"annotations": None},
        annotations([]),
        annotations(None),
    ],
)
def test_without_objects_there_is_no_mask(content: Any) -> None:
    assert find(content) is None


def test_without_pixels_or_json_there_is_no_mask() -> None:
    assert find({"segmentation": [[90, 90, 99, 90, 99, 99]]}) is None
    assert find(annotations(BOX), CocoMask([7])) is None
    assert CocoMask()(MaskRequest({"png": b""}, (WIDTH, HEIGHT))) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected an object in json, got list"),
        ({"annotations": {"a": 1}}, "expected a list of objects as annotations in json, got {'a': 1}"),
        ({"annotations": [{"bbox": [1, 2, 3]}]}, r"expected a bbox as \[x, y, width, height\], got \[1, 2, 3\]"),
        ({"annotations": [{"bbox": [1, 2, -3, 4]}]}, "expected a bbox as"),
        ({"segmentation": BOX, "width": 7.5, "height": 6}, r"expected width and height .* got \(7\.5, 6\)"),
        ({"segmentation": BOX, "width": True, "height": 6}, "expected width and height"),
        ({"segmentation": BOX, "width": float("inf")}, "expected width and height"),
        ({"shapes": [{"points": [[1, 2, 3]]}]}, "expected the points of a LabelMe shape as"),
        ({"shapes": "x"}, "expected a list of objects as shapes in json, got x"),
        ({"annotations": [3]}, "expected a list of objects as annotations in json"),
        ({"segmentation": "x"}, "expected a segmentation as an object or a list, got str"),
        ({"segmentation": {"counts": [1]}}, r'expected a segmentation as {"counts": ..., "size": \[height, width\]}'),
        ({"segmentation": {"size": [1, 1]}}, "expected a segmentation as"),
        ({"segmentation": {"counts": [1], "size": [1, 0]}}, r"expected width and height .* got \(0, 1\)"),
        ({"segmentation": {"counts": [1], "size": [9, 9]}}, "expected a segmentation of at most 50 pixels, got 9 x 9"),
        ({"segmentation": {"counts": [1], "size": [2, 2]}}, "sum to 2 x 2 = 4 pixels, got a sum of 1"),
        ({"segmentation": [[0, 0, 1, 1, 2, 2, 3]]}, "expected a polygon"),
        ({"segmentation": [[0, 0, 1, 1, 2, float("nan")]]}, "expected a polygon"),
        ({"segmentation": [0, 0, 1, 1, 2, 2]}, "expected a polygon as a list .* got 0"),
        ({"segmentation": BOX, "width": "9", "height": 9}, "expected width and height as positive whole numbers"),
    ],
)
def test_bad_annotations_are_named(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(content, max_pixels=50)


def test_no_categories_at_all_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"CocoMask\.category_ids: expected at least one number, or null for all"):
        CocoMask([])


def test_a_union_of_large_masks_is_one_mask_in_time_and_memory() -> None:
    """60 masks of 7000 x 7000 once took 2.9 GB and 26 s; here 300 of 2000 x 2000, which took 10 s one by one."""
    one = {"counts": [0, 2_000_000, 2_000_000], "size": [2000, 2000]}
    request = MaskRequest({"json": json.dumps(annotations(*[one] * 300)).encode()}, (2000, 2000))
    tracemalloc.start()
    before = time.process_time()
    try:
        mask = CocoMask(union=True)(request)
        seconds, peak = time.process_time() - before, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert mask is not None
    assert (np.asarray(mask)[:, :1000] == 255).all()
    assert not np.asarray(mask)[:, 1000:].any()
    assert seconds < 3
    assert peak < 80e6


def test_masks_of_many_sizes_are_as_many_pixels() -> None:
    shapes = [{"counts": [0, side * side], "size": [side, side]} for side in (100, 200, 300)]
    request = MaskRequest({"json": json.dumps(annotations(*shapes)).encode()}, (100, 100), max_pixels=140_000)
    mask = CocoMask(union=True)(request)
    assert mask is not None
    assert (np.asarray(mask) == 255).all()
    with pytest.raises(ValueError, match="expected a segmentation of at most 139999 pixels, got 100 x 100, 200 x 200"):
        CocoMask(union=True)(request._replace(max_pixels=139_999))


def test_objects_of_a_turned_photo() -> None:
    """Polygons and run lengths that refer to the photo as it lies in its file are turned with it."""
    turn = Turn(swap=True, x=True)  # EXIF 6: the file's left column is the upright photo's top row
    left = [[0, 0, 1, 0, 1, HEIGHT, 0, HEIGHT]]
    runs = {"counts": [0, HEIGHT, HEIGHT * (WIDTH - 1)], "size": [HEIGHT, WIDTH]}
    for content in ({"segmentation": left, "width": WIDTH, "height": HEIGHT}, {"segmentation": runs}):
        mask = find(content, size=(HEIGHT, WIDTH), turn=turn)
        assert mask[0].all()
        assert not mask[1:].any()


@pytest.mark.parametrize(
    "content",
    [
        {"segmentation": BOX, "width": 30, "height": 6},
        {"segmentation": {"counts": [180], "size": [6, 30]}},
    ],
)
def test_objects_of_a_picture_of_another_shape_are_refused(content: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a mask of the photo's shape, 7 x 6 pixels .*, got 30 x 6"):
        find(content)
