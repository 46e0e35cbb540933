"""COCO run lengths: by hand, against texts that the COCO API wrote, and every bad one named."""

import numpy as np
import pytest

from datamodules.decode.annotations import RunLengths, unpack_counts
from datamodules.decode.coco_masks import unite_rle

# Packed by pycocotools 2.0.11 from `api_mask`.
API_COUNTS = r"Vh09m04M2N2N2N2O0O2O0000000000000001N101N2N2N2N3L\b0Ho\O0000000K050000000K050000000K"


def decode_rle(counts: object, height: int, width: int) -> np.ndarray:
    return unite_rle([RunLengths(counts, height, width)])


def api_mask() -> np.ndarray:
    """A disc, and a comb at the right border; (40, 60)."""
    y, x = np.mgrid[:40, :60]
    return ((x - 30) ** 2 + (y - 18) ** 2 < 144) | ((x > 56) & (y % 9 == 0))


def pack(runs: list[int]) -> str:
    """The other way, one count at a time, as the format is told in words."""
    text = ""
    for place, run in enumerate(runs):
        number = run - runs[place - 2] if place > 2 else run
        while True:
            group, number = number & 31, number >> 5
            more = number != (-1 if group & 16 else 0)
            text += chr(48 + group + 32 * more)
            if not more:
                break
    return text


def test_columns_first_by_hand() -> None:
    expected = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert decode_rle([4, 1, 2, 1, 3, 1], 3, 4).tolist() == expected
    assert decode_rle("412010", 3, 4).tolist() == expected
    assert decode_rle([0, 2], 1, 2).all()
    assert not decode_rle([2], 2, 1).any()


def test_packed_by_the_coco_api() -> None:
    assert np.array_equal(decode_rle(API_COUNTS, 40, 60), api_mask())


def test_packed_masks_come_back() -> None:
    generator = np.random.default_rng(0)
    for share in (0.001, 0.01, 0.2, 0.5, 0.99):
        mask = generator.random((37, 91)) < share
        flat = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
        runs = np.diff(np.flatnonzero(np.diff(flat, prepend=[not flat[0]]))).tolist()
        runs[0] -= 1  # the False in front
        assert np.array_equal(decode_rle(runs, 37, 91), mask)
        assert np.array_equal(decode_rle(pack(runs), 37, 91), mask)


def test_large_counts() -> None:
    runs = [2**31, 5, 2**32 - 1, 1, 0]
    assert unpack_counts(pack(runs)).tolist() == runs


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([4, 1], r"expected COCO counts .* sum to 3 x 4 = 12 pixels, got a sum of 5"),
        ([13, -1], r"got a sum of 12 and a least count of -1"),
        ([2**62, 2**62, 2**62, 2**62, 12], "expected COCO counts of at least 0 that sum to 3 x 4"),
        ([], r"got a sum of 0"),
        ("", r"got a sum of 0"),
        ("412", r"got a sum of 7"),
        ("41201T", "expected packed COCO counts, got '41201T'"),
        ("41!", "expected packed COCO counts"),
        ("é", "expected packed COCO counts"),
        ("TTTTTTTT0", "expected packed COCO counts"),
        ([1.5, 10.5], "expected COCO counts as a text or a list of integers"),
        ([2**70], "expected COCO counts as a text or a list of integers"),
        (7, "expected COCO counts as a text or a list of integers, got 7"),
        (None, "expected COCO counts as a text or a list of integers, got None"),
    ],
)
def test_bad_counts_are_named(counts: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_rle(counts, 3, 4)  # type: ignore[arg-type]
