"""The command `inpaint`: which commands there are, and where each begins.

Modules are named in text, and imported when their command is asked for: so `--help` is quick, and this package knows
of datamodules by name alone.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO, cast

from inpaint_module.cli.errors import GOES_ON, closest, exit_code_of, take_debug
from inpaint_module.files import redact


class Command(NamedTuple):
    """One command.

    Attributes:
        summary: one line of the list in `inpaint --help`.
        module: where its function `run` is, which takes what the parser gives and returns the exit code.
        options: the function in `inpaint_module.cli.options` that makes its parser; None if LightningCLI does.
        goes_on: the same command goes on after Ctrl-C.
    """

    summary: str
    module: str
    options: str | None = None
    goes_on: bool = False


_TRAINING = "inpaint_module.cli.training"
COMMANDS = {
    "fit": Command("train from a config; again after a kill, it goes on", _TRAINING, goes_on=True),
    "validate": Command("measure a run on its validation data", _TRAINING),
    "test": Command("measure as validate does, under test/ names", _TRAINING),
    "predict": Command("inpaint a folder of pictures", "datamodules.predict", "predict"),
    "app": Command("paint a mask in the browser and see the fill", "inpaint_module.app", "app"),
    "shards make": Command(
        "photos, captions and masks into shards", "datamodules.make_shards", "shards_make", goes_on=True
    ),
    "shards index": Command("index shards that are there", "datamodules.index_shards", "shards_index", goes_on=True),
    "shards cache-latents": Command(
        "encode the training images once", "datamodules.cache_latents", "shards_cache_latents", goes_on=True
    ),
    "shards cache-text": Command(
        "read the captions of the data once", "datamodules.cache_text", "shards_cache_text", goes_on=True
    ),
    "doctor": Command("look at the data of a config before training", "datamodules.doctor.command", "doctor"),
    "masks": Command("look at the masks of a preset or a config", "inpaint_module.masks.gallery", "masks"),
    "export": Command("a run into a folder for diffusers and ComfyUI", "inpaint_module.export", "export"),
    "compare": Command("lay runs side by side", "inpaint_module.compare_runs", "compare"),
}
_HELP = ("--help", "-h")
_ESTIMATE = "--estimate"  # of fit
_HEAD = """usage: inpaint COMMAND [options]

Train inpainting models, and use them.

"""
_FOOT = """
inpaint COMMAND --help says what one takes. --debug shows where in the code an error comes from.
A first run: inpaint fit --config configs/quickstart.yaml
"""
VERB_HELP = """usage: inpaint {verb} --config FILE [--config OVERLAY ...] [--{{trainer,model,data}}.NAME=VALUE ...]

{summary}

options:
  -c, --config FILE     YAML file of a run, of the working folder or one that ships, such as configs/quickstart.yaml;
                        again for an overlay, which goes over those before it
  --ckpt_path FILE      the checkpoint (default: the newest of the run folder that verifies)
  --samples FOLDER      your own pictures, painted at the start and at every validation: NAME.jpg with its mask
                        NAME.mask.png (white = paint) and its prompt NAME.txt beside it
  --speed SPEED         auto: fast where you have said nothing (bfloat16, CUDA graphs of masks, fused optimizer); exact:
                        what changes no bit; off: nothing
  --print_config        print the whole config that these options make, and end
  --estimate            of fit: print what memory it would take, computed without weights, and end
  --debug               show where in the code an error comes from
  --help-all            every option of trainer, model and data, from their classes; takes some seconds
  --data.help CLASS     the options of one class, such as datamodules.WebDatasetDataModule
  --model.help CLASS    such as inpaint_module.InpaintDiffusion

Every value of a config is an option. Those that are changed most:
  --trainer.max_steps=N                  optimizer steps
  --trainer.devices=N                    GPUs (configs/multi_gpu.yaml)
  --trainer.precision=bf16-mixed         bfloat16; 32-true for none under --speed auto
  --trainer.accumulate_grad_batches=N    batches of one optimizer step
  --trainer.val_check_interval=N         batches from one validation to the next
  --trainer.logger.init_args.name=NAME   the run folder, runs/NAME
  --data.train_shards=PATH               your data; --data.val_shards=PATH
  --data.batch_size=N                    samples of a batch on each device
  --data.image_size=N                    pixels of a side
  --data.num_workers=N                   processes that read
  --seed_everything=N                    the seed of weights and dropout; --data.seed=N that of the data
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `inpaint`.

    Args:
        arguments: without the program's name; None for those of this process, whose module search then changes.

    Returns:
        The exit code: 0, 1 after an error, 2 for options that are not there, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    take_debug(given)
    if arguments is None:
        _own_modules_first()
    if not given or given[0] in _HELP:
        sys.stdout.write(help_text())
        return 0 if given else 2
    words, command = _chosen(given)
    rest = given[len(words.split()) :]
    if command.options is None:
        return _run_verb(words, rest)
    parsed = getattr(import_module("inpaint_module.cli.options"), command.options)().parse(rest)
    stopped = GOES_ON if command.goes_on else "stopped"
    with counted(words):
        return exit_code_of(lambda: import_module(command.module).run(*parsed), stopped)


class _Watched:
    """A stream that tells before its first writing."""

    def __init__(self, stream: Any, tell: Callable[[], None]) -> None:
        self._stream, self._tell = stream, tell

    def write(self, text: str) -> int:
        self._tell()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def counted(words: str, *, after: float = 3.0, every: float = 1.0) -> Iterator[None]:
    """Count the seconds on one line of a terminal until the command first writes: imports and models take their time.

    Args:
        words: the command.
        after: seconds until the line is there.
        every: seconds between two states of it.
    """
    if not sys.stderr.isatty():
        yield
        return
    terminal, begun, done = sys.stderr, time.monotonic(), threading.Event()

    def count() -> None:
        while not done.wait(every):
            if (seconds := time.monotonic() - begun) > after:
                terminal.write(f"\r{words}: at work for {seconds:.0f} s\x1b[K")
                terminal.flush()
        terminal.write("\r\x1b[K")
        terminal.flush()

    def stop() -> None:
        done.set()
        if thread is not threading.current_thread():
            thread.join()

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    with (
        redirect_stdout(cast("TextIO", _Watched(sys.stdout, stop))),
        redirect_stderr(cast("TextIO", _Watched(terminal, stop))),
    ):
        try:
            yield
        finally:
            stop()


def _run_verb(verb: str, rest: list[str]) -> int:
    """A verb of LightningCLI, which reads `sys.argv`, as do the ranks that it starts."""
    if any(each in _HELP for each in rest):
        sys.stdout.write(VERB_HELP.format(verb=verb, summary=COMMANDS[verb].summary))
        return 0
    if not rest:
        sys.stderr.write(f"expected --config FILE, such as: inpaint {verb} --config configs/quickstart.yaml\n")
        return 2
    estimates = verb == "fit" and _ESTIMATE in rest
    words = ("--help" if each == "--help-all" else each for each in rest if not (estimates and each == _ESTIMATE))
    sys.argv = [sys.argv[0], verb, *words]
    return exit_code_of(
        lambda: import_module(_TRAINING).run("inpaint", estimates), GOES_ON if verb == "fit" else "stopped"
    )


def help_text(group: str = "") -> str:
    """The list of the commands, or of those whose name begins with a word."""
    named = {name: each for name, each in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, COMMANDS)) + 2
    return _HEAD + "".join(f"  {name:{width}}{each.summary}\n" for name, each in named.items()) + _FOOT


def _chosen(given: Sequence[str]) -> tuple[str, Command]:
    """The command that the first words name, which may be two."""
    for words in (" ".join(given[:2]), given[0]):
        if words in COMMANDS:
            return words, COMMANDS[words]
    group = [name for name in COMMANDS if name.startswith(f"{given[0]} ")]
    if group and (len(given) < 2 or given[1] in _HELP):
        sys.stdout.write(help_text(given[0]))
        sys.exit(0 if len(given) > 1 else 2)
    _unknown(" ".join(given[:2]) if group else given[0])


def _unknown(words: str) -> NoReturn:
    known = f"the commands are {', '.join(COMMANDS)}"
    sys.stderr.write(redact(f"there is no command {words!r}{closest(words, COMMANDS)}; {known}\n"))
    sys.exit(2)


def _own_modules_first() -> None:
    """Put the working folder at the end of `sys.path`: classes in it can be named in a config, and shadow nothing.

    `python -m` puts it first, an installed script leaves it out. A clone is its own working folder, and stays first.
    """
    here = Path.cwd()
    if here.resolve() == Path(__file__).resolve().parents[2]:
        return
    names = {"", str(here), os.path.realpath(here)}
    sys.path[:] = [path for path in sys.path if path not in names] + [str(here)]
    os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that this one starts
