"""Two and three gloo ranks from the command line: the same bits after kills, the same metrics, the same checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from resumed_runs import free_port
from run_records import (
    ROOT,
    Starts,
    assert_ended_as_told,
    assert_same_bits,
    assert_same_run,
    ends,
    final,
    finish,
    keys_per_step,
    launch,
    printed,
    run_cases,
    starts,
    steps,
)
from tiny_models import tiny_module
from tiny_run import Setup, tiny_config

from inpaint_module.training.checkpoints import VerifiedCheckpointIO
from inpaint_module.training.resume import ExactResume

DDP, FSDP = Setup(ranks=2), Setup(ranks=2, strategy="fsdp")
OVERLAY = ROOT / "configs" / "multi_gpu.yaml"
SHORT = ("--trainer.max_steps=4",)
EVALUATION: dict[str, Any] = {"verb": "validate", "val_batch_size": 5}  # 4, 4 and 6 batches in all
ONE_STEP = ("--trainer.max_steps=1", "--trainer.limit_val_batches=0")
TRAINED: tuple[str, dict[str, Any]] = (
    "",
    {"verb": "fit", "ranks": 1, "options": ONE_STEP},
)  # random weights are refused
ON_ONE_RANK = {"ranks": 1, "batch_size": 4, "workers": 2}
OVERLAID = Setup(  # also in use: configs/multi_gpu.yaml, averages, the record and the report
    ranks=2,
    ema=True,
    record=True,
    options=(
        *(f"--config={OVERLAY}", "--trainer.devices=2", "--trainer.accelerator=cpu"),
        "--trainer.callbacks.ValidationReport.photos=2",
    ),
)
TRAINED_BY_ONE = ("--ckpt_path=../evaluation1/checkpoints/last.ckpt",)
QUICK: dict[str, tuple[Setup, Starts]] = {
    "whole": (OVERLAID, starts()),
    "killed": (OVERLAID, starts("save:last@6")),
    "evaluation1": (Setup(ranks=1, **EVALUATION), [TRAINED, ("", {})]),
    "evaluation3": (Setup(ranks=3, **EVALUATION, options=TRAINED_BY_ONE), starts()),
}
LONG: dict[str, tuple[Setup, Starts]] = {
    "whole": (DDP, starts()),
    "elastic": (DDP, [("batch@3", {}), ("", ON_ONE_RANK)]),
    "lone": (Setup(ranks=2, local_disks=True), starts("rank1@3")),
    "fsdp": (FSDP, starts()),
    "fsdp killed": (FSDP, starts("batch@3", "save:last@6")),
    "fsdp flipped": (FSDP, [("batch@3", {}), ("flip", {}), ("", {"options": ["--ckpt_path=checkpoints/last.ckpt"]})]),
    "fsdp poison": (Setup(ranks=2, strategy="fsdp", options=SHORT), [("poison1@3", {})]),
    "unguarded": (Setup(ranks=2, guard=False, options=SHORT), [("poison1@3", {})]),
    "abort": (Setup(ranks=2, max_dropped=3), [("poison1@", {})]),
    "poison": (Setup(ranks=2, options=SHORT), [("poison1@3", {})]),
    "evaluation2": (Setup(ranks=2, **EVALUATION), [TRAINED, ("", {})]),
    "hung": (Setup(ranks=2, timeout="0:00:10"), [("stop1@3", {})]),
}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all cases of QUICK; their ranks are forked from one process."""
    folder = tmp_path_factory.mktemp("quick")
    run_cases(folder, QUICK)
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    run_cases(folder, LONG)
    return folder


def all_finite(folder: Path) -> bool:
    return all(value.isfinite().all() for value in weights(folder).values())


def weights(folder: Path) -> dict[str, Any]:
    state = VerifiedCheckpointIO().load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("denoiser.")}


def dropped(folder: Path) -> int:
    checkpoint = VerifiedCheckpointIO().load_checkpoint(folder / "checkpoints" / "last.ckpt")
    return checkpoint["callbacks"]["NonFiniteGuard"]["dropped"]


def test_killed_ddp_ends_as_one_that_was_not(quick: Path) -> None:
    assert_ended_as_told(quick / "killed")
    assert_same_run(quick / "killed", quick / "whole", OVERLAID)
    assert "resume: going on from" in printed(quick / "killed")
    first, second = (steps(quick / "whole", rank)["batch 0"]["keys"] for rank in range(2))
    assert not set(first) & set(second)


@pytest.mark.slow
def test_other_ranks_and_workers_use_the_same_samples_in_every_step(long: Path) -> None:
    assert_ended_as_told(long / "elastic")
    assert keys_per_step(long / "elastic", DDP) == keys_per_step(long / "whole", DDP)
    assert [line["world"] for line in steps_of(long / "elastic")] == [2] * 6 + [1] * 12


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Rank 0's batches in the order in which they were done."""
    lines = [yaml.safe_load(line) for line in (folder / "steps0.jsonl").read_text().splitlines()]
    return [line for line in lines if "batch" in line]


def assert_one_step_is_dropped(folder: Path) -> None:
    (end,) = ends(folder)
    assert end["statuses"] == [0, 0]
    assert dropped(folder) == 1
    assert all_finite(folder)
    assert "step 3: gradients are not finite, the step is dropped (1 so far)" in printed(folder)
    losses = [steps(folder, rank)["batch 7"]["loss"] for rank in range(2)]
    assert losses[0] != "nan" == losses[1]


@pytest.mark.slow  # test_training_state.py has the short one
def test_a_nan_on_one_rank_changes_no_weights_on_any(long: Path) -> None:
    assert_one_step_is_dropped(long / "poison")


@pytest.mark.slow
def test_the_death_of_a_rank_ends_the_others(long: Path) -> None:
    statuses = ends(long / "lone")[0]["statuses"]
    assert statuses == [1, -9]
    assert "Connection" in printed(long / "lone")


@pytest.mark.slow
def test_ranks_with_different_checkpoints_are_refused(long: Path) -> None:
    assert ends(long / "lone")[1]["statuses"] == [1, 1]
    for rank in range(2):
        said = printed(long / "lone", rank)
        assert "expected the same whole checkpoint on every rank, got rank 0: " in said
        assert "last.ckpt (step 2, sha256 " in said
        assert "; rank 1: no checkpoint. Put the checkpoint folder where" in said


def test_evaluation_is_exact_on_any_number_of_ranks(quick: Path) -> None:
    assert_same_evaluation(quick / "evaluation3", 3, quick / "evaluation1")


@pytest.mark.slow
def test_evaluation_is_exact_on_two_ranks(long: Path, quick: Path) -> None:
    assert_same_evaluation(long / "evaluation2", 2, quick / "evaluation1")


def assert_same_evaluation(folder: Path, ranks: int, on_one: Path) -> None:
    """Sums are float64, reduced once; what is left is the rounding of the results to float32."""
    expected = steps(on_one)["validation 0"]
    found = [steps(folder, rank)["validation 0"] for rank in range(ranks)]
    assert sorted(key for each in found for key in each["keys"]) == sorted(expected["keys"])
    assert len(set(expected["keys"])) == len(expected["keys"]) == 16
    for name in expected.keys() - {"validation", "keys"}:
        values = [float.fromhex(each[name]) for each in (*found, expected)]
        assert values == [pytest.approx(values[-1], rel=1e-6)] * len(values), name


def test_two_ranks_write_one_report(quick: Path) -> None:
    found = json.loads((quick / "whole" / "report.json").read_text())
    assert (found["step"], len(found["photos"])) == (8, 2)


@pytest.mark.slow
def test_killed_fsdp2_ends_as_one_that_was_not(long: Path) -> None:
    assert_ended_as_told(long / "fsdp killed")
    assert_same_run(long / "fsdp killed", long / "fsdp", FSDP)
    found, expected = weights(long / "fsdp"), weights(long / "whole")
    for name in expected:  # 8 steps of at most 1e-3 each; Adam makes steps of rounding where a gradient is zero
        assert (found[name] - expected[name]).abs().max() < 1e-4


@pytest.mark.slow
def test_fsdp2_verifies_the_seal(long: Path) -> None:
    assert ends(long / "fsdp flipped")[1]["statuses"] == [1, 1]
    assert "last.ckpt: expected sha256" in printed(long / "fsdp flipped", 1)


@pytest.mark.slow
def test_a_nan_on_one_rank_changes_no_sharded_weights(long: Path) -> None:
    assert_one_step_is_dropped(long / "fsdp poison")


@pytest.mark.slow
def test_without_the_guard_a_nan_is_everywhere_and_nobody_says_so(long: Path) -> None:
    assert ends(long / "unguarded")[0]["statuses"] == [0, 0]
    assert not all_finite(long / "unguarded")


@pytest.mark.slow
def test_too_many_nans_end_all_ranks(long: Path) -> None:
    assert ends(long / "abort")[0]["statuses"] == [1, 1]
    assert "step 2: expected finite gradients, got infinite or NaN ones 3 steps in a row" in printed(long / "abort", 1)


@pytest.mark.slow
def test_a_hung_rank_ends_the_others_after_the_timeout(long: Path) -> None:
    (end,) = ends(long / "hung")
    assert end["statuses"] == [1, -9]  # the harness ends the stopped one
    assert 10 < end["seconds"] < 60
    assert "Timed out waiting 10000ms" in printed(long / "hung")


def train(folder: Path, *launcher: str, options: tuple[str, ...] = ()) -> Any:
    """Start `train.py fit` on the folder's config."""
    return launch(*launcher, str(ROOT / "train.py"), "fit", "--config", "config.yaml", *options, folder=folder)


@pytest.mark.slow  # of its own launcher; without it: OVERLAID
def test_the_overlay_trains_on_two_ranks(tmp_path: Path) -> None:
    (command,) = [line for line in OVERLAY.read_text().splitlines() if " fit --config" in line]
    words = command[command.index("fit") :].split()
    absolute = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    small = ["max_steps=2", "limit_train_batches=2", "val_check_interval=2", "limit_val_batches=1"]
    options = [f"--trainer.{each}" for each in ("accelerator=cpu", "devices=2", "enable_progress_bar=false", *small)]
    options += ["--data.batch_size=2", "--data.image_size=64"]
    said = finish(launch("-m", "train", *absolute, *options, folder=tmp_path), 180)
    assert "All distributed processes registered. Starting with 2 processes" in said
    assert (tmp_path / "runs/quickstart/checkpoints/last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun", "two hosts"])
def test_launchers_give_the_same_bits(launcher: str, long: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tiny_config(DDP)))
    torchrun = ("-m", "torch.distributed.run")
    if launcher == "lightning":
        finish(train(tmp_path))
    elif launcher == "torchrun":
        finish(train(tmp_path, *torchrun, "--standalone", "--nproc-per-node=2"))
    else:
        options = ("--trainer.num_nodes=2", "--trainer.devices=1")
        hosts = [*torchrun, "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
        hosts += [f"--master-port={free_port()}"]
        running = [train(tmp_path, *hosts, f"--node-rank={host}", options=options) for host in range(2)]
        for each in running:
            finish(each)
    assert_same_bits(final(tmp_path, DDP), final(long / "whole", DDP))


def sharding_trainer(**options: Any) -> Trainer:
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, **options.pop("strategy", {}))
    return Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, **options)


def test_folder_checkpoints_are_refused() -> None:
    trainer = sharding_trainer(callbacks=[ModelCheckpoint()])
    with pytest.raises(ValueError, match="save_distributed_checkpoint: expected false, got true, Lightning's default"):
        ExactResume().setup(trainer, tiny_module(), "fit")
    ExactResume().setup(trainer, tiny_module(), "validate")


def test_averaging_of_sharded_weights_is_refused() -> None:
    whole = {"save_distributed_checkpoint": False}
    ExactResume().setup(sharding_trainer(strategy=dict(whole)), tiny_module(), "fit")
    trainer = sharding_trainer(strategy=dict(whole), callbacks=[EMAWeightAveraging()])
    with pytest.raises(ValueError, match="expected no weight averaging with ModelParallelStrategy, got one"):
        ExactResume().setup(trainer, tiny_module(), "fit")
