"""Runs `train.py` again and again through kills: python resumed_runs.py FOLDER CASES

CASES is a JSON object: name of a case -> [setup, starts], each start [kill, changes to the setup]. A kill is one of
the Recorder's, `moment:<lines>+<seconds>` (so long after rank 0's log has so many new lines), `flip` (no start: damages
the newest file), or "" (runs to the end). Each start is a process per rank in one process group, forked after the
imports, which are most of the time; the ranks meet as torchrun would have them. How each start ended, in seconds, exit
statuses and checkpoints that do not verify, is appended to `ends.jsonl` of the case.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import yaml
from tiny_run import Setup, tiny_config

from inpaint_module.training.checkpoints import verify_checkpoint


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """As torchrun sets it on one host."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}
    return {name: str(value) for name, value in names.items()} if ranks > 1 else {}


def run_rank(setup: Setup, kill: str, environment: dict[str, str]) -> NoReturn:
    """`train.py`, in a child; what it prints goes to `printed<rank>.txt`."""
    import train

    os.environ |= {"KILL": kill, **environment} | ({"TMPDIR": setup.tmpdir} if setup.tmpdir else {})
    rank, config = environment.get("RANK", "0"), Path("tiny.yaml").absolute()
    descriptor = os.open(f"printed{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if setup.local_disks:
        Path(rank).mkdir(exist_ok=True)
        os.chdir(rank)
    sys.argv = ["train.py", setup.verb, "--config", str(config), *setup.options]
    from inpaint_module.training.nonfinite_guard import NonFiniteGuard

    unguarded = mock.patch.object(NonFiniteGuard, "on_before_optimizer_step")
    try:
        if not setup.guard:
            unguarded.start()
        code = train.main()
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def start(ranks: int, act: Callable[[dict[str, str]], object]) -> list[int]:
    """The ids of a process per rank, of which the first is the group's; each acts on its environment, and ends."""
    port, pids = free_port(), list[int]()
    for rank in range(ranks):
        pid = os.fork()
        group = pids[0] if pids else pid
        os.setpgid(pid, group)  # in the parent and in the child: whoever comes first
        if not pid:
            try:
                act(rank_environment(rank, ranks, port))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
        pids.append(pid)
    return pids


def log_size() -> int:
    path = Path("steps0.jsonl")
    return path.read_text().count("\n") if path.exists() else 0


def kill_at_moment(pids: list[int], moment: str, before: int) -> None:
    """Wait for the moment, or the end of the run."""
    lines, seconds = moment.split("+")
    while log_size() < before + int(lines):
        if os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.005)
    time.sleep(float(seconds))
    os.killpg(pids[0], signal.SIGKILL)


def ended(pids: list[int], kill: str) -> list[int]:
    """Exit statuses of the ranks; negative numbers are signals. A rank that fails unasked ends the others."""
    statuses: dict[int, int] = {}
    while len(statuses) < len(pids):
        pid, status = os.waitpid(-pids[0], 0)
        statuses[pid] = os.waitstatus_to_exitcode(status)
        lone = kill.startswith(("rank", "stop")) and pid != pids[0]
        if statuses[pid] and not lone and len(statuses) < len(pids):
            time.sleep(0.2 if kill else 2)  # let the others say why they end, too
            os.killpg(pids[0], signal.SIGKILL)
    return [statuses[pid] for pid in pids]


def damaged() -> list[str]:
    """Checkpoints that do not verify, a moment after the kill."""
    found = []
    for path in sorted(Path("checkpoints").glob("*.ckpt")):
        try:
            verify_checkpoint(path)
        except ValueError as error:
            found.append(str(error))
    return found


def flip(path: Path) -> None:
    """Turn one bit over, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def run(folder: Path, setup: Setup, starts: list[tuple[str, dict[str, Any]]]) -> None:
    """Start again after each kill."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    for kill, changes in starts:
        if kill == "flip":
            flip(max(Path("checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns))
            continue
        now = replace(setup, **changes)
        Path("tiny.yaml").write_text(yaml.safe_dump(tiny_config(now)))
        begin, before = time.monotonic(), log_size()
        pids = start(now.ranks, partial(run_rank, now, kill))
        if kill.startswith("moment:"):
            kill_at_moment(pids, kill.removeprefix("moment:"), before)
        end = {"kill": kill, "statuses": ended(pids, kill), "seconds": time.monotonic() - begin, "damaged": damaged()}
        with open("ends.jsonl", "a") as file:
            file.write(json.dumps(end) + "\n")


def warm_up() -> None:
    """Import all that a run imports, and read its config once: what each start would spend most of its time on."""
    from lightning.pytorch import LightningDataModule, LightningModule

    import train  # noqa: F401
    from inpaint_module.cli.training import ResumingCLI

    config: Any = tiny_config(Setup(ranks=2))
    options = {"subclass_mode_model": True, "subclass_mode_data": True, "auto_configure_optimizers": False}
    ResumingCLI(LightningModule, LightningDataModule, args=config, run=False, **options)


if __name__ == "__main__":
    arguments, sys.argv = sys.argv, ["train.py"]
    warm_up()
    for name, (setup, starts) in json.loads(Path(arguments[2]).read_text()).items():
        run(Path(arguments[1]) / name, Setup(**setup), starts)
