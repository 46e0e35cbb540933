"""Loaders: the batches are those of the stream, whatever dies or stalls on the way."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fixtures import encode, json_lines, photo, photo_shards, write_tar

from datamodules.decode.sample_decoder import SampleDecoder
from datamodules.order.loaders import EvaluationLoader, StreamLoader
from datamodules.order.order import SampleOrder
from datamodules.order.sample_stream import SampleStream
from datamodules.shards.shard_set import RawSample, ShardSet
from datamodules.shards.shard_specs import open_shards
from inpaint_module.batch import SIZE_FIELDS

COUNT = 13
DECODER = SampleDecoder(image_size=(16, 16), seed=1, augment=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return open_shards(str(photo_shards(tmp_path_factory.mktemp("data"), COUNT)))


@pytest.fixture(autouse=True)
def _short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End a test's workers with it: torch waits 5 s for each that does not end by itself."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()


class Meeting:
    """Decodes, but does something else when it meets a key (and a position, if one is named)."""

    def __init__(self, key: str, act: Callable[[], object], position: int | None = None) -> None:
        self.key, self.act, self.position = key, act, position

    def __call__(self, raw: RawSample) -> dict[str, Any]:
        if raw.key == self.key and self.position in (None, raw.position):
            self.act()
        return DECODER(raw)


def dying(number: int) -> Callable[[], None]:
    def die() -> None:
        faulthandler.disable()  # pytest's, which prints
        os.kill(os.getpid(), number)

    return die


def bad() -> None:
    raise ValueError("bad")


def loader(shards: ShardSet, decoder: Callable[..., Any] = DECODER, **options: Any) -> StreamLoader:
    order = SampleOrder(shards.counts, seed=1)
    stream = SampleStream(shards, order, batch_size=2, rank=options.pop("rank", 0), world=options.pop("world", 1))
    return StreamLoader(stream, decoder, **{"num_workers": 0, "position": lambda: 3, "seed": 1, **options})


def batches(loader: StreamLoader, count: int = 8) -> list[dict[str, Any]]:
    found = list(islice(loader, count))
    assert len(found) == count
    return found


def content(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Positions, keys, captions and pixels."""
    return [(b["position"].tolist(), b["__key__"], b["caption"], b["image"].numpy().tobytes()) for b in found]


def stream_keys(shards: ShardSet) -> list[str]:
    """The keys of the stream from position 0 on, of its first epoch."""
    return [shards.read(sample).key for sample in SampleOrder(shards.counts, seed=1)(torch.arange(COUNT)).tolist()]


# Deaths


@pytest.mark.parametrize(("number", "enough"), [(signal.SIGSEGV, 1), (signal.SIGKILL, 2)])
def test_a_sample_that_kills_its_worker_is_left_out_by_a_later_start(
    shards: ShardSet, tmp_path: Path, number: int, enough: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """A crash of the decoder counts at once, a kill from outside the second time; then the batches are those of a run
    in which the sample was bad."""
    key = stream_keys(shards)[8]
    clean = content(batches(loader(shards, Meeting(key, bad))))
    for _ in range(enough):
        with pytest.raises(RuntimeError, match="DataLoader worker") as raised:
            batches(loader(shards, Meeting(key, dying(number)), num_workers=2, folder=tmp_path))
        assert f"sample {key!r} for position 8 when it died ({signal.strsignal(number)})" in raised.value.__notes__[0]
    rows = json_lines(tmp_path / "crashes.jsonl")
    assert [(row["key"], row["position"], row["worker"], row["cause"]) for row in rows] == [
        (key, 8, 0, signal.strsignal(number))
    ] * enough
    found = batches(loader(shards, Meeting(key, dying(number)), num_workers=2, folder=tmp_path))
    assert content(found) == clean
    assert sum("substituted" in batch.get("notes", {}) for batch in found) == 1


def test_with_a_mask_of_another_both_samples_are_named(
    shards: ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = stream_keys(shards)
    found = loader(shards, Meeting(keys[5], dying(signal.SIGSEGV)), num_workers=1, folder=tmp_path)
    found._stream.removals = lambda positions: torch.zeros_like(positions)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        batches(found)
    assert {row["key"] for row in json_lines(tmp_path / "crashes.jsonl")} == {keys[5], shards.read(0).key}


def test_a_worker_ended_from_outside_blames_no_sample(
    shards: ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped = loader(shards, Meeting(stream_keys(shards)[8], dying(signal.SIGTERM)), num_workers=2, folder=tmp_path)
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        batches(stopped)
    assert not (tmp_path / "crashes.jsonl").exists()


def test_a_worker_that_dies_while_it_reads_is_told_apart(
    shards: ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped = loader(shards, num_workers=2, folder=tmp_path)
    stopped._stream.removals = lambda positions: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, return-value]
    with pytest.raises(RuntimeError, match="DataLoader worker") as raised:
        batches(stopped)
    assert "A worker died (Killed) while it was not decoding a sample. Is there too" in raised.value.__notes__[0]
    assert not (tmp_path / "crashes.jsonl").exists()


def test_two_workers_that_raise_together_show_the_true_error(shards: ShardSet, tmp_path: Path) -> None:
    def broken(raw: RawSample) -> dict[str, Any]:
        raise OSError(f"the disk is gone: {raw.key}")

    with pytest.raises(OSError, match="the disk is gone: p0"):
        batches(loader(shards, broken, num_workers=2, folder=tmp_path))
    assert not (tmp_path / "crashes.jsonl").exists()


def test_an_evaluation_names_the_sample_that_killed_its_worker(
    shards: ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def evaluate() -> None:
        stream = SampleStream(shards, SampleOrder(shards.counts, shuffle=False), batch_size=2, steps=7)
        decoder = Meeting("p002", dying(signal.SIGSEGV))
        list(EvaluationLoader(stream, decoder, steps=7, num_workers=1, folder=tmp_path))

    with pytest.raises(RuntimeError, match="DataLoader worker") as raised:
        evaluate()
    assert "sample 'p002' for position 2 when it died (Segmentation fault)" in raised.value.__notes__[0]
    with pytest.raises(ValueError, match=r"sample 'p002': has killed a worker that decoded it"):
        evaluate()


def test_a_kill_of_everything_blames_no_sample(shards: ShardSet, tmp_path: Path) -> None:
    def train() -> None:
        os.setsid()
        slow = loader(shards, Meeting("", bad), num_workers=2, folder=tmp_path)
        slow._stream.removals = lambda positions: time.sleep(0.2) or torch.full_like(positions, -1)
        for _ in slow:
            (tmp_path / "training").touch()

    if not (child := os.fork()):
        train()
    while not (tmp_path / "training").exists():
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["training"]


# Stalls and errors


def test_a_stall_is_named(shards: ShardSet) -> None:
    keys = stream_keys(shards)
    stalled = loader(shards, Meeting(keys[5], lambda: time.sleep(2)), num_workers=2, stall_timeout=0.5)
    message = (
        rf"data\.loading\.stall_timeout: expected a batch within 0.5 s, got none: .*worker 1 decodes .*{keys[5]}.* 5"
    )
    with pytest.raises(TimeoutError, match=message):
        batches(stalled)


def test_a_slow_batch_is_no_stall(shards: ShardSet) -> None:
    slow = loader(shards, Meeting(stream_keys(shards)[5], lambda: time.sleep(1.5)), num_workers=1, stall_timeout=5)
    assert content(batches(slow, 3)) == content(batches(loader(shards), 3))


def test_an_evaluation_that_stalls_is_an_error(shards: ShardSet) -> None:
    stream = SampleStream(shards, SampleOrder(shards.counts, shuffle=False), batch_size=2, steps=7)
    decoder = Meeting("p002", lambda: time.sleep(1.5))
    with pytest.raises(TimeoutError, match=r"within 0.5 s, got none: worker 0 decodes .*'p002' for position 2"):
        list(EvaluationLoader(stream, decoder, steps=7, num_workers=1, stall_timeout=0.5))


def test_an_evaluation_names_its_bad_sample(shards: ShardSet, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", encode(photo(1))), ("b.png", b"x")])
    broken = open_shards(str(tmp_path))
    stream = SampleStream(broken, SampleOrder(broken.counts, shuffle=False), batch_size=2, steps=1)
    with pytest.raises(ValueError, match=r"0\.tar: sample 'b': cannot identify"):
        list(EvaluationLoader(stream, DECODER, steps=1, num_workers=0))


def test_an_unreadable_shard_is_not_a_bad_sample(shards: ShardSet) -> None:
    def gone() -> None:
        raise OSError("the disk is gone")

    for workers in (0, 1):
        with pytest.raises(OSError, match="the disk is gone"):
            batches(loader(shards, Meeting(stream_keys(shards)[5], gone), num_workers=workers))


# Bad samples


@pytest.fixture
def broken(tmp_path: Path) -> ShardSet:
    """40 samples, of which 4 are no images."""
    members = [(f"k{n:02d}.png", b"x" if n % 10 == 3 else encode(photo(n))) for n in range(40)]
    (tmp_path / "broken").mkdir()
    write_tar(tmp_path / "broken" / "0.tar", members)
    return open_shards(str(tmp_path / "broken"))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_substituted_and_written_down(broken: ShardSet, tmp_path: Path, workers: int) -> None:
    found = batches(loader(broken, num_workers=workers, folder=tmp_path, position=lambda: 0), 20)
    assert content(found) == content(batches(loader(broken, position=lambda: 0), 20))
    noted = [text for batch in found for text in batch.get("notes", {}).get("bad", ())]
    assert len(noted) >= 4
    written = {row["key"] for row in json_lines(tmp_path / "quarantine.jsonl")}
    assert written == {"k03", "k13", "k23", "k33"}
    assert written.isdisjoint(key for batch in found for key in batch["__key__"])
    assert [p for batch in found for p in batch["position"].tolist()] == list(range(40))
    names = {"image", "position", "caption", "__key__", *SIZE_FIELDS}
    assert {frozenset(batch) for batch in found} == {frozenset(names | extra) for extra in (set(), {"notes"})}
    later = batches(loader(broken, num_workers=workers, position=lambda: 20), 10)
    assert content(later) == content(found[10:])


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_end_the_run(broken: ShardSet, tmp_path: Path, workers: int) -> None:
    message = (
        r"data\.loading\.max_bad_share: expected at most 0\.30% bad samples, got 4 among .*quarantine\.jsonl names all"
    )
    with pytest.raises(ValueError, match=message):
        batches(loader(broken, num_workers=workers, folder=tmp_path, max_bad_share=0.003, position=lambda: 0), 20)


def test_zero_ends_it_at_the_first(broken: ShardSet) -> None:
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"0\.tar: sample 'k\d3': cannot identify"):
            batches(loader(broken, num_workers=workers, max_bad_share=0.0, position=lambda: 0), 20)


# The rest


def test_a_worker_computes_on_one_thread(shards: ShardSet, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(lambda: torch.set_num_threads(1))
    torch.set_num_threads(2)

    def threads(raw: RawSample) -> dict[str, Any]:
        return {**DECODER(raw), "caption": str(torch.get_num_threads())}

    assert {c for batch in batches(loader(shards, threads, num_workers=2), 4) for c in batch["caption"]} == {"1"}


def test_the_position_is_asked_for_when_the_loader_starts(shards: ShardSet) -> None:
    position = [3]
    for workers in (0, 1):
        ready = loader(shards, position=lambda: position[0], num_workers=workers)
        position[0] += 1
        found = iter(ready)
        position[0] += 10
        assert next(found)["position"][0] == position[0] - 10
