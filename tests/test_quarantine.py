"""Quarantine, crash list, substitution and limit: nothing bad is lost, too much of it is an end."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import encode, json_lines, photo, write_tar

from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.order.failures import BadSample, InflightMarkers, Quarantine, WatchedDecoder, append_line
from datamodules.order.order import SampleOrder
from datamodules.order.sample_stream import BadShareLimit, SubstitutingDecoder
from datamodules.shards.shard_set import ShardSet
from datamodules.shards.shard_specs import open_shards

BAD = BadSample("s.tar", "k", 5, "cannot identify")


# Files


def test_a_bad_sample_is_written_once_per_process(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "run", rank=3)
    assert not (tmp_path / "run").exists()
    for bad in (BAD, BAD._replace(position=9), BAD._replace(key="l", reason="x" * 5000)):
        quarantine.add(bad)
    found = json_lines(tmp_path / "run" / "quarantine.jsonl")
    assert [(row["shard"], row["key"], row["position"], row["rank"], row["worker"]) for row in found] == [
        ("s.tar", "k", 5, 3, None),
        ("s.tar", "l", 5, 3, None),
    ]
    assert found[0]["reason"] == "cannot identify"
    assert len(found[1]["reason"]) == 1000
    assert found[0]["time"] > 1.7e9
    Quarantine(None).add(BAD)


def test_processes_share_a_file(tmp_path: Path) -> None:
    children = []
    for number in range(4):
        if not (child := os.fork()):
            for row in range(50):
                append_line(tmp_path / "a.jsonl", number=number, row=row, text="é" * 300)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    found = [(row["number"], row["row"]) for row in json_lines(tmp_path / "a.jsonl")]
    assert sorted(found) == [(number, row) for number in range(4) for row in range(50)]


# Substitution


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    """Samples k0 to k7 in two shards, of which k1, k2 and k5 are no images, and k7 alone in a third."""
    for shard in range(2):
        members = [(f"k{n}.png", b"x" if n in (1, 2, 5) else encode(photo(n))) for n in range(4 * shard, 4 * shard + 4)]
        write_tar(tmp_path / f"{shard}.tar", members)
    return open_shards(str(tmp_path))


def tolerant(shards: ShardSet, folder: Path | None = None, **options: Any) -> SubstitutingDecoder:
    settings = {"seed": 3, "attempts": 8, "quarantine": Quarantine(folder), **options}
    decoder = SampleDecoder(image_size=(16, 16), seed=3, augment=True)
    return SubstitutingDecoder(decoder, shards=shards, **{"order": SampleOrder(shards.counts, seed=3), **settings})


def test_a_clean_sample_is_as_it_was(shards: ShardSet) -> None:
    raw = shards.read(0)._replace(position=11)
    found, expected = tolerant(shards)(raw), tolerant(shards).decoder(raw)
    assert found.keys() == expected.keys()
    assert found["image"].equal(expected["image"])


def test_the_substitute_takes_the_place_of_the_bad_one(shards: ShardSet, tmp_path: Path) -> None:
    """Another sample of the window, by (seed, position); its place, crop and flip are the position's."""
    decode, chosen = tolerant(shards, tmp_path / "run"), []
    keys = [f"k{number}" for number in range(8)]
    for position in range(24):
        raw = shards.read(1)._replace(position=position, size=None)
        sample = decode(raw)
        good = shards.read(keys.index(sample["__key__"]))._replace(position=position)
        assert sample["image"].equal(decode.decoder(good)["image"])
        assert sample["position"] == position
        kinds = [kind for kind, _ in sample["notes"]]
        assert kinds == ["bad"] * (len(kinds) - 1) + ["substituted"]
        assert sample["notes"][-1][1] == f"k1 by {sample['__key__']}"
        again = tolerant(shards)(raw)
        assert (again["__key__"], len(again["notes"])) == (sample["__key__"], len(sample["notes"]))
        chosen.append(sample["__key__"])
    assert set(chosen) == {"k0", "k3", "k4", "k6", "k7"}
    assert chosen != [tolerant(shards, seed=4)(shards.read(1)._replace(position=p))["__key__"] for p in range(24)]
    found = json_lines(tmp_path / "run" / "quarantine.jsonl")
    assert sorted(row["key"] for row in found) == ["k1", "k2", "k5"]
    assert re.fullmatch(r".*0\.tar: sample 'k1': cannot identify image file .*", found[0]["reason"])
    assert found[0]["position"] == 0


def test_the_window_bounds_the_choice(shards: ShardSet) -> None:
    order = SampleOrder(shards.counts, seed=3, window=1)
    first = int(order(torch.tensor([0]))) // 4  # the shard that comes first
    good = {0: {"k0", "k3"}, 1: {"k4", "k6", "k7"}}[first]
    decode = tolerant(shards, order=order)
    assert {decode(shards.read(1)._replace(position=p))["__key__"] for p in range(4)} <= good


def test_the_aimed_size_stays(shards: ShardSet) -> None:
    decode = tolerant(shards)
    seen = []
    decode.decoder = lambda raw: seen.append(raw) or SampleDecoder(image_size=(16, 16), seed=3, augment=True)(raw)  # type: ignore[func-returns-value]
    decode(shards.read(1)._replace(position=4, size=(8, 24)))
    assert {raw.size for raw in seen} == {(8, 24)}
    assert {raw.position for raw in seen} == {4}


def test_the_first_bad_sample_raises_where_none_is_allowed(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.tar: sample 'k1': cannot identify"):
        tolerant(shards, tmp_path / "run", attempts=0)(shards.read(1)._replace(position=0))


def test_attempts_end(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [(f"k{n}.png", b"x") for n in range(9)])
    shards = open_shards(str(tmp_path))
    message = r"0\.tar: sample 'k2': cannot.*; the 4 substitutes tried are bad too, the last: .*0\.tar: sample 'k\d'"
    with pytest.raises(ValueError, match=message):
        tolerant(shards, attempts=4)(shards.read(2)._replace(position=0))


def test_a_sample_alone_in_its_window_has_no_substitute(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("k.png", b"x")])
    shards = open_shards(str(tmp_path))
    with pytest.raises(ValueError, match=r"sample 'k': cannot .*; its window has no other sample to substitute"):
        tolerant(shards)(shards.read(0)._replace(position=0))


def test_the_mask_of_a_bad_sample_is_not_used(shards: ShardSet, tmp_path: Path) -> None:
    raw = shards.read(0)._replace(position=3)
    sample = tolerant(shards, tmp_path / "run")(raw._replace(removal=shards.read(5)))
    assert sample["__key__"] == "k0"
    assert sample["image"].equal(tolerant(shards)(raw)["image"])
    assert [kind for kind, _ in sample["notes"]] == ["bad"]
    assert [row["key"] for row in json_lines(tmp_path / "run" / "quarantine.jsonl")] == ["k5"]


def test_a_substitute_does_not_get_its_own_mask_as_anothers(shards: ShardSet) -> None:
    decode = tolerant(shards)
    alone = decode(shards.read(1)._replace(position=3))
    number = int(alone["__key__"][1:])
    others = []
    inner = decode.decoder
    decode.decoder = lambda raw: others.append((raw.key, raw.removal and raw.removal.key)) or inner(raw)  # type: ignore[func-returns-value]
    decode(shards.read(1)._replace(position=3, removal=shards.read(number)))
    assert (alone["__key__"], None) in others
    assert (alone["__key__"], alone["__key__"]) not in others


def test_samples_that_killed_workers_are_not_decoded(shards: ShardSet) -> None:
    path = shards.shards[0].path
    decode = tolerant(shards)
    decode.decoder = WatchedDecoder(decode.decoder, InflightMarkers(0), {(path, "k0")})
    sample = decode(shards.read(0)._replace(position=3))
    assert sample["__key__"] != "k0"
    assert sample["notes"][0] == ("bad", f"{path}: sample 'k0': has killed a worker that decoded it")
    sample = decode(shards.read(3)._replace(position=3, removal=shards.read(0)))
    assert sample["__key__"] == "k3"
    assert "has killed a worker" in sample["notes"][0][1]


def test_a_full_memory_is_no_bad_sample(shards: ShardSet) -> None:
    decode = tolerant(shards)

    def full(raw: Any) -> Any:
        raise ValueError("s.tar: sample 'k': ") from MemoryError()

    decode.decoder = full
    for other in (None, shards.read(3)):
        with pytest.raises(ValueError, match=r"^s\.tar: sample 'k': $"):
            decode(shards.read(0)._replace(position=3, removal=other))


# Limit


def test_limit_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    limit = BadShareLimit(0.01, path=Path("run/quarantine.jsonl"))
    for number in range(10):
        limit([f"reason {number}"], 1)
    assert caplog.messages == ["substituted a bad sample: reason 0 (run/quarantine.jsonl names all)"]
    message = (
        r"data\.loading\.max_bad_share: expected at most 1\.00% bad samples, got 11 among the last 11 "
        r"\(run/quarantine\.jsonl names all\); the last: reason 8; reason 9; reason 10"
    )
    with pytest.raises(ValueError, match=message):
        limit(["reason 10"], 1)


def test_limit_is_of_the_last_ten_thousand() -> None:
    limit = BadShareLimit(0.01)
    for _ in range(40):  # 40 in 20,000 would be under 1 % too, so do more at the end
        limit(["x"], 500)
    assert (limit.samples, limit.bad) == (10_000, 20)
    limit(["x"] * 79, 500)
    assert (limit.samples, limit.bad) == (10_000, 98)
    with pytest.raises(ValueError, match="got 101 among the last 10000"):
        limit(["x"] * 4, 500)
