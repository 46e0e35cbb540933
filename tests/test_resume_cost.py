"""The cost of a resume in a stream of 10 million samples: the same work, and little memory, at any position."""

import sys
from collections.abc import Callable

import pytest
import torch

from datamodules.order import bucket_order
from datamodules.order import order as order_module
from datamodules.order.bucket_order import BucketOrder, Buckets
from datamodules.order.order import MixedOrder, Order, SampleOrder
from tests.benchmarks.bench_resume import measure

SAMPLES, BATCH = 10_000_000, 50
WINDOW = 8 * 10_000  # samples of eight of a thousand shards
STARTS = (0, SAMPLES // 2, SAMPLES - SAMPLES // 1000, 1000 * SAMPLES + SAMPLES // 4)  # no window ends there


def plain() -> Order:
    return SampleOrder((10_000,) * 1000, seed=5)


def mixed() -> Order:
    sources = [SampleOrder((10_000,) * shards, seed=5) for shards in (504, 496)]  # windows without remainder
    return MixedOrder(sources, [1.0, 1.0], seed=5)


def bucketed() -> Order:
    return BucketOrder(plain(), lambda samples: samples % 3 + 0.5, Buckets((512, 512)), batch_size=BATCH, seed=5)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each permutation had."""
    lengths: list[int] = []
    real = order_module.permutation

    def counted(order_key: torch.Tensor, length: int) -> torch.Tensor:
        lengths.append(length)
        return real(order_key, length)

    for module in (order_module, bucket_order):
        monkeypatch.setattr(module, "permutation", counted)
    return lengths


@pytest.mark.parametrize(
    ("make", "work"),
    [
        (plain, [1000, WINDOW]),
        (mixed, [4096, 504, WINDOW, 496, WINDOW]),
        (bucketed, [1000, WINDOW, 64]),  # of shards, of one window's samples, of one group's batches
    ],
)
def test_the_first_batch_is_the_same_work_everywhere(
    make: Callable[[], Order], work: list[int], hashed: list[int]
) -> None:
    for start in STARTS:
        hashed.clear()
        make()(torch.arange(start, start + BATCH))
        assert sorted(hashed) == sorted(work), start


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_resume_takes_little_memory() -> None:
    """Of a fresh process, the indexes of the 8 shards of 10,000 samples that the first batch comes from included."""
    _, grew = measure("buckets", [10_000] * 1000, 1000 * SAMPLES)
    assert 10 < grew < 200, "MiB"
