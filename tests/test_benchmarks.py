"""The benchmarks run, and measure what they say; their figures are nobody's business here."""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from inpaint_module import masks, randomness
from tests.benchmarks import __main__ as command
from tests.benchmarks import bench_step, machine, markdown, rooms, timing
from tests.benchmarks.bench_step import BASE, VARIANTS
from tests.benchmarks.peak_memory import MEBIBYTE, in_fresh_process, rise
from tests.benchmarks.phase_clock import PhaseClock
from tests.benchmarks.published_step import draw_mask, prepare_sample
from tests.benchmarks.step_settings import settings
from tests.benchmarks.training_step import ENCODE, PHASES, Place


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The benchmarks set torch's threads; later tests have theirs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# of which the tests below and elsewhere run parts
LONG = ["memory", "encoder", "latent_cache", "resume", "step", "stream"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in command.BENCHMARKS]
)
def test_a_benchmark_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(f"tests.benchmarks.bench_{name}").main(["--quick"])
    printed = capsys.readouterr().out
    assert printed.startswith("# ")
    assert re.search(r"^\|[-|]+\|\n\| ", printed, re.MULTILINE), "a table with a row"
    assert "nan" not in printed


@pytest.mark.cuda
def test_the_step_benchmark_runs_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    bench_step.main(["--quick", "--device", "cuda", "--workers", "1"])
    assert capsys.readouterr().out.count("| ours |") == 4


@pytest.mark.cuda
def test_the_clock_of_a_gpu_sees_its_work() -> None:
    clock, matrix = PhaseClock("cuda"), torch.rand(2048, 2048, device="cuda")
    clock.restart()
    clock.enter("work")
    for _ in range(20):
        matrix = matrix @ matrix.softmax(1)
    clock.enter("nothing")
    seconds = clock.stop()
    assert seconds["work"] > 10 * seconds["nothing"]


def test_the_clock_sums_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    clock = PhaseClock("cpu")
    for phase in ("a", "b", "a"):
        clock.enter(phase)
    assert clock.stop() == {"a": 5.0, "b": 2.0}


def test_calls_take_turns() -> None:
    seen: list[str] = []
    timing.medians({name: lambda name=name: seen.append(name) for name in "ab"}, "cpu", rounds=2)
    assert "".join(seen) == "ababab"


def test_memory_is_seen_in_a_fresh_process() -> None:
    sixty_four = partial(torch.ones, 64 * MEBIBYTE // 4)
    assert abs(in_fresh_process(rise, sixty_four, "cpu") / MEBIBYTE - 64) < 8


def test_a_table_is_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    markdown.table("Title", ["", "ms"], [("ours", 1.23456), ("theirs", 2)])
    assert capsys.readouterr().out == "\n## Title\n\n|  | ms |\n|---|---|\n| ours | 1.235 |\n| theirs | 2 |\n"


def test_a_published_sample_is_empty_in_its_hole() -> None:
    drawn = draw_mask(64)
    assert drawn.size == (64, 64)
    assert set(drawn.get_flattened_data() if hasattr(drawn, "get_flattened_data") else drawn.getdata()) == {0, 255}
    sample = prepare_sample(torch.full((3, 64, 64), -1.0))
    assert torch.equal(sample["masked_images"], (sample["masks"] - 1).expand(3, -1, -1))


def test_both_ways_train_the_same_denoiser_on_batches_of_one_size() -> None:
    setting, place = settings("cpu", quick=True)[1], Place("cpu", 1, 1, False)
    published, ours = (variant.build(setting, place) for variant in (BASE, VARIANTS[2]))
    for one, other in zip(published.denoiser.parameters(), ours.denoiser.parameters(), strict=True):
        assert torch.equal(one, other)
    first = published.vae.encoder.conv_in.weight
    assert first.dtype == torch.float32
    assert first.is_contiguous()
    assert next(published.batches())["pixel_values"].shape == next(ours.batches())["image"].shape
    assert vars(published.scheduler.config) == vars(ours.module.scheduler.config)


def test_the_phases_of_a_step_are_complete() -> None:
    setting, place = settings("cpu", quick=True)[1], Place("cpu", 1, 1, False)
    for variant in (BASE, VARIANTS[2]):
        step = variant.build(setting, place)
        step.run(step.batches())
        seconds = step.clock.stop()
        assert set(seconds) == set(PHASES)
        assert seconds[ENCODE] > 0


def test_the_command_writes_what_is_printed_and_names_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = {"masks": "print('# Masks')", "resume": "raise SystemExit(3)"}
    monkeypatch.setattr(command, "command", lambda name, device, quick: ["-c", codes[name]])
    out = tmp_path / "results" / "cpu.md"
    assert command.main(["--only", "resume,masks", "--quick", "--out", str(out)]) == 1
    text = out.read_text()
    assert text == capsys.readouterr().out
    assert text.index(machine.cpu()) < text.index("# Masks") < text.index("**resume failed** with exit code 3.")
    assert str(command.ROOT) not in text
    assert command.main(["--only", "masks", "--out", str(out)]) == 0


def test_the_command_refuses_an_unknown_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "masks,mask"])
    known = "encoder,masks,stream,step,resume,latent_cache,serving,memory"
    assert f"expected some of {known}; got mask" in capsys.readouterr().err


def test_each_benchmark_gets_the_options_that_it_knows() -> None:
    assert command.command("step", "cuda", quick=True) == [
        "-m",
        "tests.benchmarks.bench_step",
        "--device",
        "cuda",
        "--quick",
    ]
    assert command.command("stream", "cuda", quick=False) == ["-m", "tests.benchmarks.bench_stream"]


def test_rooms_counts_what_is_entered_and_what_the_source_has() -> None:
    trace = rooms.Trace()
    trace.start()
    randomness.key(0, torch.arange(2), randomness.Stream.MASK)
    masks.Boxes()
    trace.stop()
    randomness.draw(torch.arange(2), 1)
    assert trace.files[0] == "inpaint_module/randomness.py"
    assert trace.folders == ["inpaint_module", "inpaint_module/masks"]
    assert not any("draw" in hop for hop in trace.hops)
    assert trace.hops[0].endswith("inpaint_module/masks/boxes.py: Boxes.__init__")
    source = rooms.shape()
    assert "inpaint_module/encoder.py" in source["modules"]
