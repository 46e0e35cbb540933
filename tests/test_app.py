"""`inpaint app`: what is painted becomes the mask, what is shown is what the model was given."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import tiny_module

from inpaint_module import app
from inpaint_module.cli import options
from inpaint_module.inpaint_image import inpaint_image, look
from inpaint_module.trained import GIVEN_NAME, SHIPPED_NAME, ModelChoice

needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed: the extra [app]")


def layer(width: int, height: int, *painted: tuple[int, int, int]) -> Image.Image:
    """A layer with pixels (x, y, alpha)."""
    made = Image.new("RGBA", (width, height))
    for x, y, alpha in painted:
        made.putpixel((x, y), (200, 0, 0, alpha))
    return made


def test_the_mask_is_what_is_painted_at_least_half() -> None:
    photo = Image.new("RGB", (4, 3), "blue")
    layers = [layer(4, 3, (1, 2, 255), (3, 0, 127)), layer(4, 3, (0, 0, 128))]
    picture, mask = app.painted_mask({"background": photo, "layers": layers, "composite": None})
    assert picture.size == (4, 3)
    assert mask.shape == (1, 3, 4)
    assert mask[0].nonzero().tolist() == [[0, 0], [2, 1]]
    _, twice = app.painted_mask({"background": photo.resize((8, 6)), "layers": layers[1:], "composite": None})
    assert twice[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_painted_mask_comes_back() -> None:
    given = torch.rand(1, 7, 9, generator=torch.Generator().manual_seed(0)) > 0.5
    _, mask = app.painted_mask(app.with_mask(Image.new("RGB", (9, 7)), given))
    assert torch.equal(mask, given)
    drawn = app.painted_by_preset(app.opened("bucket"), "lama-medium", 0)
    assert 0.02 < app.painted_mask(drawn)[1].float().mean() < 0.9
    assert not app.painted_mask(app.opened("bucket"))[1].any()


@pytest.mark.parametrize("drawn", [None, {}, {"background": None, "layers": []}])
def test_no_picture_is_said(drawn: dict[str, Any] | None) -> None:
    with pytest.raises(ValueError, match="expected one to paint on, got none"):
        app.painted_mask(drawn)
    with pytest.raises(ValueError, match=r"expected one of .*bucket.*, got '\.\./x'"):
        app.opened("../x")


def test_what_is_shown_is_what_the_model_was_given() -> None:
    module = tiny_module().eval()
    module.sampling_steps = 1
    photo = Image.effect_noise((64, 48), 90).convert("RGB")
    mask = torch.zeros(1, 48, 64, dtype=torch.bool)
    mask[0, 16:32, 16:40] = True
    shown = look(module, photo, mask, 64)
    image = torch.frombuffer(bytearray(photo.tobytes()), dtype=torch.uint8).reshape(48, 64, 3).movedim(-1, 0)
    fill = inpaint_image(module, image, mask, working_side=64)
    assert shown.fill.tobytes() == fill.movedim(0, -1).contiguous().numpy().tobytes()
    assert [each.size for each in shown[1:4]] == [(384, 307)] * 3  # of 60 x 48: the hole and 20 more, without padding
    assert shown.notes.startswith(
        "12.5% of the picture is masked. The model saw 60 x 48 of its 64 x 48 pixels, as 60 x"
    )
    assert "**0.0%** of the grown mask leak" in shown.notes
    white = shown.cells.convert("L").resize((60, 48), Image.Resampling.NEAREST).point(lambda grey: grey > 127).getbbox()
    ratio = module.encoder.vae.ratio
    first, last = (16 - 2) // ratio * ratio, -(-(40 + 3) // ratio) * ratio  # the mask grows 2 left, 3 right
    assert white is not None
    assert (white[0], white[2]) == (first, last)
    with pytest.raises(ValueError, match="expected a painted hole, got an empty one"):
        look(module, photo, torch.zeros_like(mask), 64)


def test_runs_with_checkpoints_can_be_chosen_and_nothing_else(tmp_path: Path) -> None:
    for name, files in {"a": ["1.ckpt", "last.ckpt"], "none": []}.items():
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
        for age, file in enumerate(files):
            (tmp_path / name / "checkpoints" / file).touch()
            os.utime(tmp_path / name / "checkpoints" / file, (age, age))
    models = ModelChoice(tmp_path)
    assert models.names() == [SHIPPED_NAME, "a"]
    assert models.checkpoints("a") == ["last.ckpt", "1.ckpt"]
    assert models.checkpoints(SHIPPED_NAME) == []
    assert ModelChoice(tmp_path / "missing", [Path("x.yaml")]).names() == [GIVEN_NAME, SHIPPED_NAME]
    for name, checkpoint, said in (("../a", None, "model: expected"), ("a", "../1.ckpt", "checkpoint: expected")):
        with pytest.raises(ValueError, match=said):
            models.load(name, checkpoint)


def test_only_a_loopback_host_is_silent() -> None:
    assert all(map(app.is_loopback, ("127.0.0.1", "127.8.0.1", "::1", "[::1]", "localhost")))
    assert not any(map(app.is_loopback, ("0.0.0.0", "::", "192.168.1.2", "", "localhost.example.com")))
    assert options.app().parse([])[0].host == "127.0.0.1"


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    assert app.main([]) == 1
    said = capsys.readouterr().err
    assert "expected gradio 6" in said
    assert "pip install 'inpaint-module[app]'" in said
    assert said.count("\n") == 1


CLIENT = """
import json, sys
from pathlib import Path
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from inpaint_module import app
from inpaint_module.trained import ModelChoice

page = app.make_page(ModelChoice(Path("runs")))
address = app.serve(page, "127.0.0.1", None)
client = Client(address, verbose=False)
def files(drawn):
    return {"background": handle_file(drawn["background"]), "layers": [handle_file(each) for each in drawn["layers"]],
            "composite": handle_file(drawn["composite"])}
drawn = files(client.predict("bucket", api_name="/open"))
try:
    client.predict(drawn, "the small model that ships", None, 0, 0, "", api_name="/fill")
except AppError as error:
    wrong = str(error)
painted = files(client.predict(drawn, "lama-thick", 1, api_name="/paint"))
*pictures, told = client.predict(painted, "the small model that ships", None, 0, 0, "", api_name="/fill")
page.close(verbose=False)
print(json.dumps({"wrong": wrong, "told": told, "pictures": len(pictures), "address": address}))
"""


@pytest.mark.slow
@needs_gradio
def test_the_page_answers_gradios_own_client(tmp_path: Path) -> None:
    """In a process of its own, as gradio's warnings are not ours to mend."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment()
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["address"].startswith("http://127.0.0.1:")
    assert "expected a painted hole" in found["wrong"]
    assert "of the picture is masked" in found["told"]
    assert found["pictures"] == 4


BROWSER = """
import sys
from pathlib import Path
from playwright.sync_api import sync_playwright
from inpaint_module import app
from inpaint_module.trained import ModelChoice

page = app.make_page(ModelChoice(Path("runs")))
address = app.serve(page, "127.0.0.1", None)
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=sys.argv[1] or None, args=["--no-sandbox"])
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    afar = []
    near = (address, "data:", "blob:")
    tab.on("request", lambda asked: None if asked.url.startswith(near) else afar.append(asked.url))
    tab.goto(address)
    tab.wait_for_selector("#drawn canvas")
    tab.wait_for_timeout(3000)  # the canvas says nowhere when it takes strokes
    box = tab.locator("#drawn canvas").first.bounding_box()
    x, y = box["x"] + 0.4 * box["width"], box["y"] + 0.5 * box["height"]
    tab.mouse.move(x, y)
    tab.mouse.down()
    for step in range(10):
        tab.mouse.move(x + 8 * step, y + 4 * (step % 3))
    tab.mouse.up()
    tab.wait_for_timeout(1000)
    tab.click("#fill")
    tab.wait_for_selector("text=of the picture is masked", timeout=120000)
    print(tab.inner_text("#told"), "| asked afar:", afar)
    browser.close()
page.close(verbose=False)
"""


@pytest.mark.slow
@needs_gradio
@pytest.mark.skipif(find_spec("playwright") is None, reason="pip install playwright, then playwright install chromium")
def test_a_stroke_painted_in_a_browser_is_filled(tmp_path: Path) -> None:
    """CI without a browser skips it; `pip install playwright && playwright install chromium` brings one."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    done = subprocess.run(
        [sys.executable, "-c", BROWSER, chromium],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=environment(),
    )
    if "Executable doesn't exist" in done.stderr:
        pytest.skip("playwright has no browser: playwright install chromium")
    assert done.returncode == 0, done.stderr[-2000:]
    masked = float(done.stdout.partition("%")[0])
    assert 2 < masked < 40
    assert "asked afar: []" in done.stdout


def environment() -> dict[str, str]:
    """Of a process that finds the project, does not stop at warnings, and reaches loopback past any proxy."""
    more = {"PYTHONPATH": str(Path(app.__file__).parents[1]), "PYTHONWARNINGS": "default", "NO_PROXY": "127.0.0.1"}
    return {**os.environ, **more, "no_proxy": "127.0.0.1"}
