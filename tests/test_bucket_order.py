"""Batches of one shape: nothing lost, one shape per batch for any split, the order frozen as hashes."""

import hashlib
import pickle
from itertools import islice

import pytest
import torch
from torch import Tensor

from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.order.bucket_order import AspectRatios, BucketOrder, Buckets
from datamodules.order.loaders import StreamLoader
from datamodules.order.order import MixedOrder, Order, SampleOrder
from datamodules.order.sample_stream import SampleStream
from datamodules.shards.shard_specs import open_shards
from inpaint_module.randomness import Stream, uniform
from inpaint_module.randomness import key as keys

COUNTS = (50, 30, 70, 40)
COMMON = torch.tensor([3 / 2, 3 / 2, 4 / 3, 1.0, 2 / 3, 3 / 4, 16 / 9, 9 / 16])
GOLDEN = {(0, 4): "5179af3d38867294", (2**40 + 7, 3): "bcf73f2e1e0f7937"}


def aspects(count: int) -> Tensor:
    """The usual aspects of photos, in a random order."""
    return COMMON[(uniform(keys(1, torch.arange(count), Stream.CROP), 1)[:, 0] * len(COMMON)).long()]


def base(seed: int = 0) -> SampleOrder:
    return SampleOrder(COUNTS, seed=seed, window=2)


def bucketed(order: Order | None = None, *, batch_size: int = 4, seed: int = 0, group: int = 16) -> BucketOrder:
    order = order or base(seed)
    buckets = Buckets((512, 512))
    return BucketOrder(order, aspects(len(order)).__getitem__, buckets, batch_size=batch_size, seed=seed, group=group)


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_order(case: tuple[int, int]) -> None:
    """If this fails, PLAN_VERSION must grow: old checkpoints would resume in another order."""
    seed, batch_size = case
    order = bucketed(seed=seed, batch_size=batch_size)
    positions = torch.arange(480)
    told = torch.cat([order(positions), order.shape(positions).flatten()])
    assert hashlib.sha256(told.numpy().astype("<i8").tobytes()).hexdigest()[:16] == GOLDEN[case]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7])
@pytest.mark.parametrize("group", [1, 5, 16])
@pytest.mark.parametrize("first", [0, 3, 10**7])
def test_each_group_holds_the_samples_of_the_order_below(batch_size: int, group: int, first: int) -> None:
    order = bucketed(batch_size=batch_size, group=group)
    length = batch_size * group
    positions = torch.arange(first * length, (first + 2) * length)
    for part in positions.split(length):
        assert order(part).sort().values.equal(order.order(part).sort().values)
    assert group == 1 or not order(positions).equal(order.order(positions))


def test_every_batch_has_one_shape_near_its_middle_sample() -> None:
    order = bucketed(batch_size=5)
    positions = torch.arange(800)
    shapes = order.shape(positions).view(-1, 5, 2)
    assert shapes.eq(shapes[:, :1]).all()
    middle = order.aspects(order(positions)).view(-1, 5).median(dim=1).values
    expected = torch.tensor(order.buckets.shapes)[order.buckets.nearest(middle)]
    assert shapes[:, 0].equal(expected)
    assert len(shapes[:, 0].unique(dim=0)) == 5


def test_a_group_by_hand() -> None:
    """Two batches of two of four samples, tall, wide, tall, wide: a tall batch and a wide one, each in order."""
    plain = SampleOrder((4,), shuffle=False)
    buckets = Buckets((512, 512))
    order = BucketOrder(plain, torch.tensor([0.6, 1.7, 0.6, 1.7]).__getitem__, buckets, batch_size=2, seed=0, group=2)
    found = {(tuple(order(pair).tolist()), tuple(order.shape(pair)[0].tolist())) for pair in torch.arange(4).split(2)}
    assert found == {((0, 2), (640, 384)), ((1, 3), (384, 640))}


def test_at_a_border_a_batch_takes_the_shape_of_the_lower_middle() -> None:
    """One tall and three wide, batches of four: the second of four counts."""
    plain, buckets = SampleOrder((4,), shuffle=False), Buckets((512, 512))
    for aspect, shape in (([0.6, 1.7, 1.7, 1.7], [384, 640]), ([0.6, 0.6, 1.7, 1.7], [640, 384])):
        order = BucketOrder(plain, torch.tensor(aspect).__getitem__, buckets, batch_size=4, seed=0, group=1)
        assert order.shape(torch.arange(4)).tolist() == [shape] * 4


def test_few_batches_are_of_two_buckets() -> None:
    order = bucketed(batch_size=8, group=64)
    wanted = order.buckets.nearest(order.aspects(order(torch.arange(8 * 64)))).view(64, 8)
    assert wanted.ne(wanted[:, :1]).any(dim=1).sum() <= len(order.buckets) - 1


def test_batches_of_one_shape_do_not_come_in_a_row() -> None:
    order = bucketed(batch_size=8, group=64)
    area = order.shape(torch.arange(0, 8 * 64, 8))[:, 0]
    assert area.diff().ne(0).sum() > 30


def test_another_seed_another_order_of_batches() -> None:
    below = base()
    positions = torch.arange(64)
    assert not bucketed(below, seed=1)(positions).equal(bucketed(below, seed=2)(positions))


def test_any_split_of_the_positions_gives_the_same_samples_and_shapes() -> None:
    order = bucketed()
    positions = torch.arange(40, 300)
    assert order(positions.flip(0)).equal(order(positions).flip(0))
    for ask in (order, order.shape):
        assert torch.cat([ask(part) for part in positions.split(7)]).equal(ask(positions))


def test_another_is_of_the_samples_own_window() -> None:
    """Windows are known from the order below: two shards each."""
    order = bucketed()
    positions = torch.arange(190)
    samples = order(positions)
    others = order.another(positions, (positions * 2654435761) & 0xFFFFFFFF)
    assert not samples.eq(others).any()
    below = order.order
    by_sample = {int(sample): place for place, sample in enumerate(below(positions).tolist())}
    first, length = below.window_bounds(positions)
    for position, sample, other in zip(positions.tolist(), samples.tolist(), others.tolist(), strict=True):
        if position < 128:  # whole groups of the first epoch
            place = by_sample[sample]
            window = below(torch.arange(int(first[place]), int(first[place] + length[place])))
            assert other in window.tolist()


def test_over_mixed_sources() -> None:
    mixed = MixedOrder([base(), SampleOrder((9, 9), seed=1)], [3.0, 1.0], seed=0)
    order = bucketed(mixed)
    positions = torch.arange(640)
    assert order(positions).sort().values.equal(mixed(positions).sort().values)
    assert (len(order), order.shard_count) == (208, 6)
    assert order.plan().keys() == {"source_weights", "source_samples", "buckets", "batch_size"}


@pytest.mark.parametrize("position", [0, 63, 64, 130, 64 * 10**6])
def test_shards_ahead_hold_the_whole_group_and_more(position: int) -> None:
    order = SampleOrder((4,) * 60, seed=1, window=3)
    order = BucketOrder(order, aspects(240).__getitem__, Buckets((512, 512)), batch_size=4, seed=0, group=16)
    ahead = order.shards_ahead(position)
    assert len(ahead) == len(set(ahead))
    assert ahead == order.shards_ahead(position // 64 * 64)
    group = torch.arange(position // 64 * 64, position // 64 * 64 + 64)
    assert set(ahead) >= set((order(group) // 4).tolist())
    assert ahead[:6] == order.order.shards_ahead(int(group[0]))
    assert set(order.order.shards_ahead(int(group[-1]))) <= set(ahead)


def test_what_is_told_can_be_changed_without_harm() -> None:
    order = bucketed()
    order.shards_ahead(0).clear()
    assert order.shards_ahead(0)


def test_pickles_with_warm_caches() -> None:
    order = bucketed()
    before = order(torch.arange(100))
    order.shards_ahead(0)
    again = pickle.loads(pickle.dumps(order))
    assert again(torch.arange(100)).equal(before)
    assert again.plan() == order.plan()


def test_plan_tells_what_the_order_hangs_on() -> None:
    buckets = {"image_size": [512, 512], "step": 64, "max_aspect": 2.0, "group": 16}
    assert bucketed().plan() == {"buckets": buckets, "batch_size": 4}


def test_real_photos_come_in_batches_of_one_shape() -> None:
    """The embedded photos, decoded: one shape per batch, every photo as often as without buckets, less cut off."""
    shards = open_shards("embedded:val")
    below = SampleOrder(shards.counts, seed=0)
    sizes = AspectRatios(shards)
    order = BucketOrder(below, sizes, Buckets((64, 64), step=8), batch_size=2, seed=0, group=8)
    decoder = SampleDecoder(image_size=(64, 64), seed=0, augment=True)
    stream = SampleStream(shards, order, batch_size=2)
    batches = list(islice(StreamLoader(stream, decoder, num_workers=0, position=lambda: 0), 16))
    shapes = torch.tensor([batch["image"].shape[-2:] for batch in batches])
    positions = torch.arange(32)
    assert shapes.equal(order.shape(positions)[::2])
    assert len(shapes.unique(dim=0)) > 1
    assert shapes.prod(dim=1).gt(0.9 * 64 * 64).all()
    keys = [name for batch in batches for name in batch["__key__"]]
    assert sorted(keys) == sorted(shards.read(sample).key for sample in below(positions).tolist())
    aspect, target = sizes(order(positions)).log(), (shapes[:, 1] / shapes[:, 0]).log().repeat_interleave(2)
    assert (aspect - target).abs().mean() < 0.6 * aspect.abs().mean()
