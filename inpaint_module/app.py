"""Paint a hole on a picture in the browser and see what a model makes of it: inpaint app

The page has a picture of yours or an embedded one, a brush for the mask, or a mask of a preset, and the models: the
small one that ships, the runs below --runs with their checkpoints, and the one of --config. It shows the fill, as
`inpaint predict` makes it, and what the model was given: the grown mask, the masked image, the mask on the latent grid,
and how much of the mask is lost there.

The page is served on this machine alone unless --host says otherwise, and loads nothing from elsewhere.
"""

from __future__ import annotations

import ipaddress
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace
from PIL import Image
from torch import Tensor

from inpaint_module.cli import options
from inpaint_module.cli.errors import exit_code_of, message_of
from inpaint_module.inpaint_image import Looked, look, trained_side
from inpaint_module.masks import preset, presets
from inpaint_module.randomness import Stream, key
from inpaint_module.trained import ModelChoice
from inpaint_module.weights import ASSETS

_PHOTOS = {file.stem.rpartition("-")[2]: file for file in sorted((ASSETS / "photos").glob("*.jpg"))}
_LONGEST = 2048  # pixels of a side; larger pictures would make a browser's canvas slow
_BRUSH = "#e12d3c"
_STEPS = "0: the model's own; 1: the mean of all fills, blurred; more: texture, further from what was there"
_CSS = ".gradio-container {max-width: 1240px !important; margin: auto} footer {display: none !important}"


def painted_mask(drawn: dict[str, Any] | None) -> tuple[Image.Image, Tensor]:
    """The picture RGB of what gradio's ImageEditor gives, and where its layers are painted: bool (1, H, W).

    Raises:
        ValueError: there is no picture.
    """
    if not drawn or drawn.get("background") is None:
        raise ValueError("picture: expected one to paint on, got none: choose an embedded picture, or open one")
    picture = drawn["background"].convert("RGB")
    mask = np.zeros((picture.height, picture.width), bool)
    for layer in drawn.get("layers") or []:
        alpha = layer.convert("RGBA").getchannel("A").resize(picture.size, Image.Resampling.NEAREST)
        mask |= np.array(alpha) >= 128
    return picture, torch.from_numpy(mask)[None]


def with_mask(picture: Image.Image, mask: Tensor) -> dict[str, Any]:
    """A picture with a mask bool (1, H, W) painted on it, as gradio's ImageEditor takes it."""
    alpha = Image.fromarray(mask[0].byte().mul(255).numpy())
    layer = Image.new("RGBA", picture.size, _BRUSH)
    layer.putalpha(alpha)
    shown = Image.composite(Image.new("RGB", picture.size, _BRUSH), picture, alpha)
    return {"background": picture, "layers": [layer], "composite": shown}


def opened(name: str) -> dict[str, Any]:
    """An embedded picture, with nothing painted on it."""
    if name not in _PHOTOS:
        raise ValueError(f"picture: expected one of {', '.join(_PHOTOS)}, got {name!r}")
    picture = Image.open(_PHOTOS[name]).convert("RGB")
    return with_mask(picture, torch.zeros(1, picture.height, picture.width, dtype=torch.bool)) | {"layers": []}


def make_page(models: ModelChoice) -> Any:
    """The page, a gradio Blocks, which `serve` serves.

    Raises:
        ValueError: gradio is not installed.
    """
    gr = _gradio()
    with gr.Blocks(title="inpaint", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("## inpaint\nPaint over what is to go, then press **Fill**.")
        with gr.Row():
            with gr.Column(min_width=320):
                drawn = _editor(gr)
                button = gr.Button("Fill", variant="primary", elem_id="fill")
            with gr.Column(min_width=320):
                result = _shown(gr, "fill", 400, ["download", "fullscreen"])
                notes = gr.Markdown(elem_id="told")
        with gr.Row():
            with gr.Column(min_width=320):
                photo, recipe, by_preset, choices = _controls(gr, models)
            with gr.Column(min_width=320), gr.Row():
                small = [_shown(gr, name, 180, []) for name in ("grown mask", "masked image", "latent mask")]
        said = partial(_said, gr, models.lock)
        photo.input(said(opened), photo, drawn, api_name="open")
        by_preset.click(said(painted_by_preset), [drawn, recipe, choices[3]], drawn, api_name="paint")
        filled = said(partial(fill_as_asked, models))
        button.click(filled, [drawn, *choices], [result, *small, notes], api_name="fill")
    return page


def _editor(gr: Any) -> Any:
    return gr.ImageEditor(
        opened(next(iter(_PHOTOS))),
        type="pil",
        format="png",
        label="picture and mask",
        sources=("upload", "clipboard"),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=24, colors=[_BRUSH], color_mode="fixed"),
        height=400,
        elem_id="drawn",
    )


def _shown(gr: Any, name: str, height: int, buttons: list[str]) -> Any:
    name_id = name.replace(" ", "-")
    return gr.Image(
        label=name, format="png", interactive=False, height=height, min_width=100, buttons=buttons, elem_id=name_id
    )


def _controls(gr: Any, models: ModelChoice) -> tuple[Any, Any, Any, list[Any]]:
    """What is chosen: the embedded picture, the preset and its button; model, checkpoint, steps, seed and caption."""
    names = models.names()
    known = models.checkpoints(names[0])
    with gr.Row():
        photo = gr.Dropdown(list(_PHOTOS), value=next(iter(_PHOTOS)), label="embedded picture", min_width=150)
        recipe = gr.Dropdown(list(presets()), value="lama-medium", label="preset", min_width=150)
    by_preset = gr.Button("Paint a mask of the preset", elem_id="paint")
    with gr.Row():
        model = gr.Dropdown(names, value=names[0], label="model", min_width=150, elem_id="model")
        checkpoint = gr.Dropdown(known, label="checkpoint", visible=bool(known), min_width=150, elem_id="checkpoint")
    with gr.Row():
        steps = gr.Number(0, minimum=0, maximum=1000, precision=0, label="steps", info=_STEPS, min_width=150)
        seed = gr.Number(0, minimum=0, precision=0, label="seed", info="of noise and preset", min_width=150)
    caption = gr.Textbox(label="caption, for models with text encoders")

    def of_run(name: str) -> Any:
        found = models.checkpoints(name)
        return gr.Dropdown(choices=found, value=found[0] if found else None, visible=bool(found))

    model.change(of_run, model, checkpoint, api_name="checkpoints")
    model.focus(lambda: gr.Dropdown(choices=models.names()), None, model, api_name=False)  # runs that are new by now
    return photo, recipe, by_preset, [model, checkpoint, steps, seed, caption]


def _said(gr: Any, lock: threading.Lock, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, one call at a time, with what is wrong as the page's own message."""

    def call(*given: Any) -> Any:
        try:
            with lock:
                return function(*given)
        except (ValueError, OSError, RuntimeError) as error:
            raise gr.Error(message_of(error), print_exception=False) from error

    return call


def fill_as_asked(
    models: ModelChoice,
    drawn: dict[str, Any] | None,
    name: str,
    checkpoint: str | None,
    steps: float | None,
    seed: float | None,
    caption: str | None,
) -> Looked:
    """What the page's button does; `steps` of 0 are the model's own.

    Raises:
        ValueError: no picture, one that is too large, nothing painted on it, or no such model.
    """
    picture, mask = painted_mask(drawn)
    if max(picture.size) > _LONGEST:
        raise ValueError(
            f"picture: expected at most {_LONGEST} pixels a side, got {picture.width} x {picture.height}: `inpaint "
            "predict` takes pictures of any size"
        )
    module, side = models.load(name, checkpoint)
    usual = module.sampling_steps
    module.sampling_steps = int(steps or 0) or usual
    try:
        return look(module, picture, mask, side or trained_side(module), seed=int(seed or 0), caption=caption or "")
    finally:
        module.sampling_steps = usual


def painted_by_preset(drawn: dict[str, Any] | None, name: str, seed: float | None) -> dict[str, Any]:
    """The picture of an ImageEditor with a mask of a preset painted on it instead of its own."""
    picture, _ = painted_mask(drawn)
    keys = key(int(seed or 0), torch.zeros(1, dtype=torch.int64), Stream.MASK)
    return with_mask(picture, preset(name)(keys, picture.height, picture.width)[0])


def _gradio() -> Any:
    """The library, set to report nothing to anyone.

    Raises:
        ValueError: it is not installed.
    """
    if find_spec("gradio") is None:
        raise ValueError(
            "inpaint app: expected gradio 6, which draws the page, but it is not installed: "
            "pip install 'inpaint-module[app]', or in a clone pip install -e '.[app]'"
        )
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio

    return gradio


def serve(page: Any, host: str, port: int | None) -> str:
    """Serve a page until its `close`; its address.

    Raises:
        ValueError: the port is taken, or the host is not this machine's.
    """
    gr = _gradio()
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # others come from afar
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            enable_monitoring=False,
            max_file_size="50mb",
            theme=gr.themes.Default(**fonts),
            css=_CSS,
        )
    except OSError as error:
        where = "any port from 7860 on" if port is None else f"port {port}"
        raise ValueError(
            f"--host {host}: expected to serve at {where} of this machine, but it is taken or is not ours ({error}): "
            "choose another one with --port"
        ) from error
    return str(address)


def is_loopback(host: str) -> bool:
    """Whether a host is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def run(given: Namespace, overrides: Sequence[str]) -> int:
    """The command, with what `options.app` parsed."""
    _gradio()
    models = ModelChoice(given.runs, given.config, given.checkpoint, overrides)
    with tempfile.TemporaryDirectory(prefix="inpaint_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # what is painted goes when the command ends
        page = make_page(models)
        address = serve(page, given.host, given.port)
        try:
            if not is_loopback(given.host):
                sys.stderr.write(
                    f"--host {given.host}: everyone who reaches this machine can open the page without a password, use "
                    f"its processor and the models of {given.runs}\n"
                )
            sys.stdout.write(f"open {address} in a browser; Ctrl-C ends\n")
            sys.stdout.flush()
            threading.Event().wait()
        finally:
            page.close(verbose=False)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 1 after an error, 130 after Ctrl-C."""
    return exit_code_of(lambda: run(*options.app().parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
