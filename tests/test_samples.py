"""Samples: the user's pictures, painted at the start and at every validation, as `inpaint predict` would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from quiet_trainer import QUIET, quiet_trainer
from test_ema import loader
from test_ema import module as tiny_run_module
from two_ranks import equal, weights

from datamodules.samples import Samples
from inpaint_module.inpaint_image import inpaint_image, surroundings, trained_side
from inpaint_module.report.report_files import _spread, painted_samples
from inpaint_module.training import EMA

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable.*")]
NAMES = ("hole", "step_000000", "step_000004")


def picture(folder: Path, name: str = "cat", prompt: str | None = "a cat") -> Path:
    """A photo of 96 x 64 with a hole and a prompt."""
    folder.mkdir(exist_ok=True)
    values = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / f"{name}.png")
    mask = np.zeros((64, 96), np.uint8)
    mask[20:40, 30:50] = 255
    Image.fromarray(mask).save(folder / f"{name}.mask.png")
    if prompt is not None:
        (folder / f"{name}.txt").write_text(prompt)
    return folder


def fit(folder: Path, run: Path, *callbacks: Callback, steps: int = 4, **options: Any) -> Any:
    torch.manual_seed(0)
    model = tiny_run_module()
    limits: Any = {"limit_val_batches": 1, "num_sanity_val_steps": 1, "val_check_interval": 2}
    painted = [Samples(str(folder), **options)] if folder.name != "none" else []
    trainer = quiet_trainer(steps, callbacks=[*painted, *callbacks], logger=CSVLogger(run, "r", ""), **limits)
    trainer.fit(model, loader(), loader(100))
    return model, torch.get_rng_state()


def test_pictures_over_time_leave_no_trace_in_the_training(tmp_path: Path) -> None:
    folder = picture(tmp_path / "mine")
    picture(folder, "dog", None)
    model, stream = fit(folder, tmp_path / "runs", EMA(0.5))
    plain, same = fit(tmp_path / "none", tmp_path / "others", EMA(0.5))
    assert equal(weights(model), weights(plain))
    assert torch.equal(stream, same)
    run = tmp_path / "runs" / "r"
    found = painted_samples(run, 4)
    assert [(each.name, each.prompt, list(each.pictures)) for each in found] == [
        ("cat", "a cat", ["hole", "step 0", "step 2", "step 4"]),
        ("dog", "", ["hole", "step 0", "step 2", "step 4"]),
    ]
    assert [list(each.pictures)[-1] for each in painted_samples(run, 3)] == ["step 2", "step 2"]
    assert (run / "samples" / "over_time.png").exists()


def test_what_is_painted_is_what_predict_paints_with_the_weights_of_validation(tmp_path: Path) -> None:
    folder = picture(tmp_path / "mine")
    model, _ = fit(folder, tmp_path / "runs", EMA(0.5))  # which leaves the average, that of the last validation, in it
    image = torch.from_numpy(np.array(Image.open(folder / "cat.png"))).movedim(-1, 0)
    mask = torch.from_numpy(np.array(Image.open(folder / "cat.mask.png")) > 127)[None]
    wanted = inpaint_image(model.eval(), image, mask, position=0, caption="a cat").movedim(0, -1).numpy()
    region = surroundings(mask, trained_side(model))
    assert region is not None
    box = slice(region.top, region.bottom), slice(region.left, region.right)
    hole, first, last = (np.array(Image.open(tmp_path / "runs/r/samples/cat" / f"{name}.png")) for name in NAMES)
    assert np.abs(last.astype(int) - wanted[box]).max() <= 1
    assert (first != last).any()
    assert (hole[mask[0][box].numpy()] == 128).all()
    assert (hole == last)[~mask[0][box].numpy()].all()


def test_a_model_that_makes_nan_trains_on(tmp_path: Path) -> None:
    folder = picture(tmp_path / "mine")

    class Spoilt(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.denoiser.conv_out.bias.data.fill_(torch.nan)

    with pytest.warns(UserWarning, match=r"samples: .*cat.png is not painted at step 2: the model makes NaN"):
        fit(folder, tmp_path / "runs", Spoilt(), steps=2)
    assert [path.name for path in (tmp_path / "runs/r/samples/cat").glob("step*")] == ["step_000000.png"]


def broken(folder: Path, what: str) -> str:
    """Spoil a folder; the file that is to be named."""
    if what == "folder":
        return "nowhere"
    picture(folder)
    if what == "mask missing":
        (folder / "cat.mask.png").unlink()
    elif what == "mask empty":
        Image.new("L", (96, 64)).save(folder / "cat.mask.png")
    elif what == "mask unreadable":
        (folder / "cat.mask.png").write_bytes(b"no picture")
    elif what == "picture":
        (folder / "cat.png").write_bytes((folder / "cat.png").read_bytes()[:200])
    else:
        (folder / "cat.txt").write_bytes(b"\xff\xfe\x00\xd8")
        return "cat.txt"
    return "cat.png" if what == "picture" else "cat.mask.png"


@pytest.mark.parametrize("what", ["folder", "mask missing", "mask empty", "mask unreadable", "picture", "prompt"])
def test_a_mistake_is_refused_before_the_first_step_by_the_name_of_its_file(what: str, tmp_path: Path) -> None:
    named = broken(tmp_path / "mine", what)
    folder = tmp_path / ("nowhere" if what == "folder" else "mine")
    with pytest.raises(ValueError, match=rf"^samples: .*{named}"):
        fit(folder, tmp_path / "runs", steps=1)
    assert not (tmp_path / "runs" / "r" / "samples").exists()


def test_at_most_six_steps_are_side_by_side() -> None:
    assert _spread([]) == []
    assert _spread([5]) == [5]
    assert _spread([0, 2]) == [0, 2]
    assert _spread(list(range(0, 1100, 100))) == [0, 200, 400, 600, 800, 1000]
