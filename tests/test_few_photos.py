"""Few photos: repeats, trigger words, tags, and a prior with a weight of its own in the loss."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import Halves, photo, photo_shards
from tiny_models import tiny_batch, tiny_module

from datamodules import CaptionOptions, DecoderOptions, OrderOptions, WebDatasetDataModule
from datamodules.cache_latents import cache_latents
from datamodules.make_shards import make_shards


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Two photos with tags, and eight of a prior."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for number in range(2):
        photo(number).save(mine / f"m{number}.png")
        (mine / f"m{number}.txt").write_text("dog, grass, sun, red ball")
    make_shards(mine, tmp_path / "a")
    photo_shards(tmp_path / "prior", 8)
    return [str(tmp_path / "a"), str(tmp_path / "prior" / "shards")]


def data_module(sources: list[str], **options: Any) -> WebDatasetDataModule:
    chosen = {"batch_size": 4, "image_size": 32, "mask_generator": Halves()} | options
    return WebDatasetDataModule(sources, **chosen)


def captions(data: WebDatasetDataModule, count: int) -> list[str]:
    return [text for batch in islice(data.train_dataloader(), count) for text in batch["caption"]]


def test_repeats_are_of_each_photo(sources: list[str]) -> None:
    """2 photos 4 times while 8 come once: half of the stream each."""
    data = data_module(sources, order=OrderOptions(repeats=[4, 1]))
    assert data.train_order.plan()["source_weights"] == [0.5, 0.5]
    samples = data.train_order(torch.arange(200)).tolist()
    assert sum(sample < 2 for sample in samples) == pytest.approx(100, abs=25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"repeats": [1, 2], "source_weights": [1, 2]},
            r"data.order.repeats: expected null with source_weights \[1, 2\]",
        ),
        ({"repeats": [0, 2]}, "data.order.repeats: expected positive finite numbers"),
    ],
)
def test_repeats_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OrderOptions(**options)


def test_what_is_said_of_each_source_has_one_for_each(sources: list[str]) -> None:
    with pytest.raises(ValueError, match=r"data.order.repeats: expected one number for each of the 2 entries"):
        data_module(sources, order=OrderOptions(repeats=[4])).train_order  # noqa: B018
    with pytest.raises(ValueError, match=r"captions.prefix: expected one text, or one for each of the 2 entries"):
        data_module(sources, decoder=DecoderOptions(captions=CaptionOptions(prefix=["a"]))).train_set  # noqa: B018
    with pytest.raises(ValueError, match=r"loss_weights: expected one number for each of the 2 entries"):
        data_module(sources, decoder=DecoderOptions(loss_weights=[1.0])).train_set  # noqa: B018
    with pytest.raises(ValueError, match=r"loss_weights: expected finite numbers of at least 0"):
        DecoderOptions(loss_weights=[1.0, -1.0])


def test_tags_are_shuffled_and_left_out_by_position() -> None:
    options = CaptionOptions(shuffle_tags=True, tag_dropout=0.3, keep_tags=1)
    text, rest = "dog, grass, sun, red ball", {"grass", "sun", "red ball"}
    made = [options.tags(text, seed=5, position=position).split(", ") for position in range(150)]
    assert all(tags[0] == "dog" and len(set(tags)) == len(tags) and set(tags[1:]) <= rest for tags in made)
    kept = sum(len(tags) - 1 for tags in made) / (3 * 150)
    assert kept == pytest.approx(0.7, abs=0.06)
    first = Counter(tags[1] for tags in made if len(tags) == 4)
    assert min(first[tag] for tag in rest) > sum(first.values()) / 7
    assert made == [options.tags(text, seed=5, position=position).split(", ") for position in range(150)]
    assert made != [options.tags(text, seed=6, position=position).split(", ") for position in range(150)]
    assert CaptionOptions(tag_dropout=1.0, keep_tags=2).tags(text, 0, 0) == "dog, grass"
    assert CaptionOptions(keep_tags=1).tags("a photo,  of a dog ", 0, 0) == "a photo,  of a dog "
    assert CaptionOptions(shuffle_tags=True).tags("", 0, 0) == ""
    assert CaptionOptions(shuffle_tags=True, keep_tags=9).tags(text, 0, 0) == text


def test_prefix_and_suffix() -> None:
    options = CaptionOptions(prefix="sks dog, ", suffix=", photo")
    assert options.around("on grass") == "sks dog, on grass, photo"
    assert CaptionOptions(prefix="sks dog, ").around("") == "sks dog"
    each = CaptionOptions(prefix=["sks ", ""])
    assert [each.around("dog", source) for source in (0, 1)] == ["sks dog", "dog"]
    assert CaptionOptions().around("  dog ".strip()) == "dog"


def test_a_prior_has_its_weight_and_no_trigger_word(sources: list[str]) -> None:
    options = DecoderOptions(loss_weights=[1.0, 0.25], captions=CaptionOptions(prefix=["sks, ", ""]))
    data = data_module(sources, decoder=options, order=OrderOptions(source_weights=[1, 1]), val_shards=sources[0])
    seen = set()
    for batch in islice(data.train_dataloader(), 6):
        for key, caption, weight in zip(batch["__key__"], batch["caption"], batch["loss_weight"].tolist(), strict=True):
            mine = key.startswith("m")
            assert (caption.startswith("sks, dog, grass"), weight) == (mine, 1.0 if mine else 0.25)
            seen.add(mine)
    assert seen == {True, False}
    batch = next(iter(data.val_dataloader()))
    assert "loss_weight" not in batch
    assert batch["caption"][0] == "sks, dog, grass, sun, red ball"


def test_workers_do_not_change_captions(sources: list[str]) -> None:
    options = DecoderOptions(captions=CaptionOptions(shuffle_tags=True, tag_dropout=0.5))
    found = [captions(data_module(sources, decoder=options, num_workers=workers), 3) for workers in (0, 2)]
    assert found[0] == found[1]
    assert len(set(found[0])) > 2


def test_a_latent_cache_keeps_captions_as_they_are(sources: list[str], tmp_path: Path) -> None:
    """What is done to them is done once, in the training from it."""
    captions_of = CaptionOptions(prefix=["sks, ", ""], shuffle_tags=True)
    options = DecoderOptions(captions=captions_of, loss_weights=[1, 0.5])
    for number, source in enumerate(sources):
        plain = data_module(
            [source], decoder=DecoderOptions(captions=CaptionOptions(prefix="sks, ", shuffle_tags=True))
        )
        cache_latents(plain, tiny_module().encoder, tmp_path / f"cache{number}")
    data = data_module([str(tmp_path / f"cache{number}") for number in (0, 1)], decoder=options)
    for batch in islice(data.train_dataloader(), 3):
        for key, caption, position in zip(batch["__key__"], batch["caption"], batch["position"].tolist(), strict=True):
            text = "dog, grass, sun, red ball"
            mine = captions_of.around(captions_of.tags(text, data.seed, position))
            assert caption == (mine if key.startswith("m") else f"photo {int(key[1:4])}")


def test_the_loss_of_a_prior_counts_as_its_weight_says() -> None:
    """The mean over the batch of each sample's own loss times its weight."""
    module, batch = tiny_module(), tiny_batch(3)
    rows = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(3)]
    alone = [module.loss(row).item() for row in rows]
    weights = [1.0, 0.25, 2.0]
    got = module.loss({**batch, "loss_weight": torch.tensor(weights)}).item()
    assert got == pytest.approx(sum(a * b for a, b in zip(alone, weights, strict=True)) / 3, rel=1e-5)
    assert module.loss({**batch, "loss_weight": torch.ones(3)}).item() == pytest.approx(
        module.loss(batch).item(), rel=1e-6
    )
