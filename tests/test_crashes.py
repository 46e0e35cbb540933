"""Crashes: counted over runs, and a file that is not ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.faults.crashes import CrashLog
from datamodules.faults.inflight import Inflight


def test_two_deaths_of_any_runs_make_a_killer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for run in range(2):
        log = CrashLog(tmp_path)
        assert not log.killers
        log.add(Inflight(8, [("0.tar", "k1")] + [("0.tar", "k2")] * run), worker=0, exit_code=-9)
    assert log.killers == {("0.tar", "k1")}
    assert CrashLog(tmp_path).killers == log.killers
    assert "1 samples have killed workers twice and are substituted: 0.tar: k1" in caplog.text


@pytest.mark.parametrize("line", ["{", "[1]", '{"shard": "0.tar"}'])
def test_other_lines_are_refused(tmp_path: Path, line: str) -> None:
    CrashLog(tmp_path).add(Inflight(8, [("0.tar", "k1")]), worker=0, exit_code=-9)
    with (tmp_path / "crashes.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=r"crashes\.jsonl, line 2: expected a crash, got '.*'; delete the line"):
        CrashLog(tmp_path)
