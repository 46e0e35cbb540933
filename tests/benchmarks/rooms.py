"""How many rooms a reader walks through: project files and folders that one thing enters, and the shape of the source.

    python -m tests.benchmarks.rooms                     # a minute; the figures of issue 17
    python -m tests.benchmarks.rooms --list batch        # each file that one batch enters, in order, and each hop

Counted by sys.setprofile in one process without loader workers, tests left out:

- batch: the third step of the quickstart, from the fetch of its batch to the end of its callbacks; it logs nothing yet.
- resume: the choice of the checkpoint in a second `fit`, and all that Lightning restores from it.
- predict: the whole command for one picture under a preset, with the shipped model.

A file counts once a function in it is entered. A hop is the entry of a function behind that of one in another folder,
the same two in a row once.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

from tests.benchmarks.markdown import table

ROOT = Path(__file__).parents[2]
PACKAGES = ("inpaint_module", "datamodules")
CONFIG = ROOT / "configs" / "quickstart.yaml"
SCENES = ("batch", "resume", "predict")
_WAYS = ("files", "folders", "hops")
GOALS: dict[str, int] = {"batch: files": 32, "batch: folders": 9, "batch: hops": 50, "resume: files": 22}
GOALS |= {"predict: files": 24, "modules": 120, "modules over 300 lines": 0, "function bodies over 30 lines": 0}
GOALS |= {"public functions without docstring": 0, "public functions without types": 0}
GOALS |= {"sub-packages without re-exports": 0}


class Trace:
    """The project functions that are entered between `start` and `stop`, and those that follow each other."""

    def __init__(self) -> None:
        self.functions: dict[CodeType, None] = {}
        self.pairs: dict[tuple[CodeType, CodeType], None] = {}
        self.last: CodeType | None = None

    def start(self) -> None:
        """Begin to count, in threads that start later too."""
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def stop(self) -> None:
        """Count no more."""
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    @property
    def files(self) -> list[str]:
        """Paths of the files, relative to the project, in the order in which they are entered."""
        return list(dict.fromkeys(_path(code) for code in self.functions))

    @property
    def folders(self) -> list[str]:
        """Their folders."""
        return list(dict.fromkeys(str(Path(file).parent) for file in self.files))

    @property
    def hops(self) -> list[str]:
        """From folder to folder: `file: function -> file: function`."""
        pairs = [(a, b) for a, b in self.pairs if Path(_path(a)).parent != Path(_path(b)).parent]
        return [f"{_path(a)}: {a.co_qualname} -> {_path(b)}: {b.co_qualname}" for a, b in pairs]

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not _is_ours(code):
            return
        self.functions[code] = None
        if self.last is not None:
            self.pairs[self.last, code] = None
        self.last = code


def _is_ours(code: CodeType) -> bool:
    """A function of the project; not the body of a module or class, which an import runs."""
    return bool(code.co_flags & inspect.CO_OPTIMIZED) and code.co_filename.startswith(_OURS)


_OURS = tuple(str(ROOT / package) + os.sep for package in PACKAGES)


def _path(code: CodeType) -> str:
    return str(Path(code.co_filename).relative_to(ROOT))


@contextlib.contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """`owner.name` is `make(what it was)` inside of the block."""
    before = getattr(owner, name)
    setattr(owner, name, make(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def quickstart(steps: int) -> int:
    """The quickstart in the working folder until so many steps are done, without validation and loader workers."""
    few = {"max_steps": steps, "limit_train_batches": steps, "val_check_interval": steps, "limit_val_batches": 0}
    few |= {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    options = [f"--trainer.{name}={value}" for name, value in few.items()]
    sys.argv = ["train", "fit", f"--config={CONFIG}", *options, "--data.num_workers=0", "--data.batch_size=4"]
    return importlib.import_module("train").main()


def trace_batch(trace: Trace) -> None:
    """One step of a fit."""
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    def third(advance: Any) -> Any:
        def counted(loop: Any, fetcher: Any) -> None:
            chosen = loop.batch_progress.total.ready == 2
            if chosen:
                trace.start()
            try:
                advance(loop, fetcher)
            finally:
                trace.stop()
            if chosen:
                loop.trainer.save_checkpoint("runs/quickstart/checkpoints/last.ckpt")  # for the resume

        return counted

    with replaced(_TrainingEpochLoop, "advance", third):
        assert quickstart(4) == 0, "the quickstart ends well"


def trace_resume(trace: Trace) -> None:
    """A second fit, where a run is already."""
    from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector as Connector

    from inpaint_module.cli.training import ResumingCLI

    def counted(function: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            trace.start()
            try:
                return function(*arguments, **named)
            finally:
                trace.stop()

        return run

    restores = ("_restore_modules_and_callbacks", "restore_training_state", "resume_end")
    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(ResumingCLI, "before_fit", counted))
        for name in restores:
            stack.enter_context(replaced(Connector, name, counted))
        assert quickstart(6) == 0, "the quickstart goes on"


def trace_predict(trace: Trace) -> None:
    """The command for one picture."""
    from PIL import Image

    predict = importlib.import_module("datamodules.predict")
    Path("photos").mkdir()
    Image.linear_gradient("L").convert("RGB").save("photos/a.jpg")
    trace.start()
    try:
        assert predict.main(["photos", "out", "--preset", "lama-medium"]) == 0, "predict ends well"
    finally:
        trace.stop()


def trace_all() -> dict[str, Trace]:
    """All three, in a folder of their own."""
    traces = {scene: Trace() for scene in SCENES}
    folder, arguments = Path.cwd(), sys.argv
    with tempfile.TemporaryDirectory() as empty, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(empty)
        try:
            for scene, trace in traces.items():
                globals()[f"trace_{scene}"](trace)
        finally:
            sys.argv = arguments
            os.chdir(folder)
    return traces


class Function(NamedTuple):
    """A function of the source: the lines of its body without the docstring, and if it is public, told and typed."""

    name: str
    lines: int
    public: bool
    told: bool
    typed: bool


def functions(path: Path) -> Iterator[Function]:
    """All functions of a file; public are those that no underscore and no function hides."""

    def walk(node: ast.AST, public: bool) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                seen = public and not child.name.startswith("_")
                yield _function(child, seen)
                yield from walk(child, False)
            else:
                hidden = isinstance(child, ast.ClassDef) and child.name.startswith("_")
                yield from walk(child, public and not hidden)

    def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, public: bool) -> Function:
        told = ast.get_docstring(node) is not None
        body = node.body[1:] if told else node.body
        lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        typed = node.returns is not None and all(each.annotation for each in given if each.arg not in ("self", "cls"))
        marks = " ".join(ast.unparse(each) for each in node.decorator_list)
        told = told or "overload" in marks or "setter" in marks
        return Function(f"{path.relative_to(ROOT)}: {node.name}", lines, public, told, typed)

    yield from walk(ast.parse(path.read_text()), True)


def shape() -> dict[str, list[str]]:
    """What the source has too much of: a figure's name -> those that it counts."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    modules = [str(path.relative_to(ROOT)) for path in paths if path.name != "__init__.py"]
    found = [each for path in paths for each in functions(path)]
    packages = [path for path in paths if path.name == "__init__.py" and path.parent.name not in PACKAGES]
    return {
        "modules": modules,
        "modules over 300 lines": [name for name in modules if (ROOT / name).read_text().count("\n") > 300],
        "function bodies over 30 lines": [each.name for each in found if each.lines > 30],
        "public functions without docstring": [each.name for each in found if each.public and not each.told],
        "public functions without types": [each.name for each in found if each.public and not each.typed],
        "sub-packages without re-exports": [str(p.parent.relative_to(ROOT)) for p in packages if not _exports(p)],
    }


def _exports(path: Path) -> bool:
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    return "__all__" in names


def figures() -> dict[str, list[str]]:
    """Every figure of the table, by what it counts."""
    counts = {f"{scene}: {what}": getattr(trace, what) for scene, trace in trace_all().items() for what in _WAYS}
    return counts | shape()


def main(arguments: list[str] | None = None) -> None:
    """Print the table, and what one of its figures counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", metavar="NAME", help="also print what figures count that begin so (batch, modules)")
    parser.add_argument("--source", action="store_true", help="the source alone, in a second")
    options = parser.parse_args(arguments)
    found = shape() if options.source else figures()
    for name, items in found.items():
        if options.list and name.startswith(options.list):
            sys.stdout.write(f"{name}:\n" + "".join(f"  {item}\n" for item in items))
    rows = ([name, len(items), GOALS.get(name, "")] for name, items in found.items())
    table("Rooms", ["figure", "now", "at most"], rows)


if __name__ == "__main__":
    main()
