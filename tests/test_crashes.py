"""Crashes: counted over starts, and a file that a kill has cut."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from datamodules.order.failures import CrashLog, Death, Inflight


class Dead:
    """Markers of workers that are gone."""

    def __init__(self, number: int, *samples: tuple[str, str]) -> None:
        self.left = [Death(-number, Inflight(0, 1, 8, list(samples)) if samples else None)]

    def take_dead(self) -> list[Death]:
        left, self.left = self.left, []
        return left


def death() -> RuntimeError:
    return RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")


def test_a_kill_counts_the_second_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for start in range(2):
        log = CrashLog(tmp_path)
        assert not log.refused
        error, dead = death(), Dead(signal.SIGKILL, ("0.tar", "k1"), *[("0.tar", "k2")] * start)
        for _ in range(2):  # the second time there is nothing more to say
            log.explain(error, dead)  # type: ignore[arg-type]
        assert len(error.__notes__) == 1
        assert "a start after a second such death takes another sample in its place" in error.__notes__[0]
    assert CrashLog(tmp_path).refused == {("0.tar", "k1")}
    assert "left out, since they have killed workers: 0.tar: k1" in caplog.text


def test_a_crash_of_the_decoder_counts_at_once(tmp_path: Path) -> None:
    CrashLog(tmp_path).explain(error := death(), Dead(signal.SIGSEGV, ("0.tar", "k1")))  # type: ignore[arg-type]
    assert "the next start takes another sample in its place" in error.__notes__[0]
    assert CrashLog(tmp_path).refused == {("0.tar", "k1")}


def test_without_a_folder_the_sample_is_named(tmp_path: Path) -> None:
    CrashLog(None).explain(error := death(), Dead(signal.SIGSEGV, ("0.tar", "k1")))  # type: ignore[arg-type]
    assert error.__notes__ == [
        "worker 0 was decoding 0.tar: sample 'k1' for position 8 when it died (Segmentation fault). Remove the sample"
    ]


@pytest.mark.parametrize("line", ["{", "[1]", '{"shard": "0.tar"}', "\x00\x00", "[" * 100_000, "1"])
def test_a_damaged_line_does_not_keep_a_run_from_starting(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    CrashLog(tmp_path).explain(death(), Dead(signal.SIGSEGV, ("0.tar", "k1")))  # type: ignore[arg-type]
    with (tmp_path / "crashes.jsonl").open("a") as file:
        file.write(line)
    for _ in ("training", "validation"):  # both loaders of a start read it, and say once what they say
        assert CrashLog(tmp_path).refused == {("0.tar", "k1")}
    assert caplog.text.count("line 2: expected a sample that killed a worker, passed over") == 1
    assert caplog.text.count("left out, since they have killed workers: 0.tar: k1") == 1


def test_a_file_of_other_bytes_is_told_in_one_line_without_control_characters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "crashes.jsonl").write_bytes(b"\x1b[2J\x07\n" * 200)
    assert CrashLog(tmp_path).refused == set()
    (record,) = caplog.records
    said = "line 1: expected a sample that killed a worker, passed over: '\\x1b[2J\\x07', and 199 other lines"
    assert record.getMessage() == f"{tmp_path / 'crashes.jsonl'}, {said}"
