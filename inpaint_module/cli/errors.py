"""How a command ends: its exit code, and after an error one paragraph that a user understands.

Nothing here needs a package of others: `inpaint` imports it before it has set where packages are looked for.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from typing import Any

from inpaint_module.files import redact

FAILED, STOPPED = 1, 130
GOES_ON = "stopped; the same command goes on from here"
DEBUG = "--debug"
_DEBUG_VARIABLE = "INPAINT_DEBUG"  # ranks that a launcher starts inherit it
_OURS = ("inpaint_module", "datamodules")

# lines of jsonargparse that say how it tried, not what is wrong
_NOISE = re.compile(
    r"\s*(- )?(Does not validate against any|Subtypes:|Errors:|Given value|Expected a path|Expected a <class 'None)"
)
_KEY = re.compile(r"\s*(?:- )?Parser key \"(.+)\":\s*$")
_CLASS = re.compile(r"\s*(?:- )?Problem with given class_path '(.+)':\s*$")
_OPTION = re.compile(r"Option '(.+)' is not accepted")
_ATTRIBUTE = re.compile(r"module '(.+)' has no attribute '(.+)'")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (.+)")
_INSTEAD = {  # of options that were there once
    "feature_distance": " any more; write lpips: {class_path: inpaint_module.metrics.LPIPS, init_args: {folder: FOLDER "
    "OF WEIGHTS}} instead"
}
_OUT_OF_MEMORY = re.compile(
    r"(cannot|can't) allocate memory|out of memory|_ALLOC_FAILED|worker process .*MemoryError", re.I
)
_NO_MEMORY = (
    "{error} The batch does not fit: a smaller data.batch_size (trainer.accumulate_grad_batches keeps the samples of a "
    "step) or, in validation, data.val_batch_size, model.encoder.init_args.max_batch: 1, or load_denoiser with "
    "gradient_checkpointing: true need less memory"
)


def take_debug(arguments: list[str]) -> None:
    """Remove `--debug` from a command's arguments and remember it: errors then come with their traceback."""
    if DEBUG in arguments:
        arguments.remove(DEBUG)
        os.environ[_DEBUG_VARIABLE] = "1"


def debugging() -> bool:
    """Whether `--debug` is given."""
    return bool(os.environ.get(_DEBUG_VARIABLE))


def exit_code_of(command: Callable[[], int], stopped: str = "stopped") -> int:
    """The exit code of a command: its own, 1 if its arguments or its data are wrong, 130 after Ctrl-C.

    Args:
        command: raises ValueError, OSError, jsonargparse's ArgumentError or, from our own code, RuntimeError, whose
            messages are for the user. With `--debug` they are raised on. Other errors are faults of the program.
        stopped: what is said after Ctrl-C.
    """
    try:
        return command()
    except KeyboardInterrupt:
        sys.stderr.write(f"{stopped}\n")
        return STOPPED
    except Exception as error:
        if debugging() or not _is_for_user(error):
            raise
        _end_loggers()
        sys.stderr.write(f"{message_of(error)}\n")
        return FAILED


def _end_loggers() -> None:
    """Have Weights & Biases say what it says at its end now, so that the cause is the last that is read."""
    with suppress(Exception):  # it is not imported, or whatever goes wrong there: not what the user has to know
        sys.modules["wandb"].finish(exit_code=FAILED)


def message_of(error: BaseException) -> str:
    """What a user needs to know of an error: its cause in one paragraph, and its notes."""
    cause = cause_of(error)
    text = _paragraph(str(cause)) or type(cause).__name__
    if _is_memory(cause):
        asked = re.search(r"you tried to allocate (\d+) bytes", text)  # torch's own words on a CPU, deep in its error
        head = f"the CPU has no {int(asked[1]) / 1e9:.1f} GB of memory left" if asked else text.partition(". ")[0]
        text = _NO_MEMORY.format(error=f"{head}.")
    sentences: list[str] = [text, *getattr(error, "__notes__", ())]
    *before, last = sentences
    return redact(" ".join([*(part if part.endswith((".", "!", "?", ":")) else f"{part}." for part in before), last]))


def cause_of(error: BaseException) -> BaseException:
    """What is behind jsonargparse's list of all that it tried."""
    while "Union subtypes" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    return error


def closest(name: str, known: Iterable[str]) -> str:
    """`; did you mean NAME?` with the known name that is most like it; empty if none is."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _is_for_user(error: Exception) -> bool:
    cause = cause_of(error)
    plain = isinstance(cause, ValueError | OSError | argparse.ArgumentError) or _is_memory(cause)
    return plain or (isinstance(cause, RuntimeError) and (_is_ours(cause) or hasattr(error, "__notes__")))


def _is_ours(error: BaseException) -> bool:
    """Whether our own code raised it."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").partition(".")[0] in _OURS


def _is_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, which need not be imported for this
        or _OUT_OF_MEMORY.search(str(error)) is not None
    )


def _paragraph(message: str) -> str:
    """jsonargparse's tree of attempts as `key: what is wrong`; other messages as they are."""
    if "Parser key" not in message and "Union subtypes" not in message:
        return message
    keys: list[str] = []
    owner, wrong = "", []
    for line in message.splitlines():
        if found := _KEY.match(line):
            keys.append(found[1])
        elif found := _CLASS.match(line):
            owner = found[1]
        elif line.strip() and not _NOISE.match(line):
            wrong.append(_with_suggestion(line.strip().removeprefix("- "), owner))
    named = [each for each in wrong if " has no " in each] or wrong  # what another type would have been matters less
    return f"{'.'.join(keys)}: {'; '.join(dict.fromkeys(named))}" if named else message


def _with_suggestion(wrong: str, owner: str) -> str:
    """One line of what is wrong, and the name that may have been meant."""
    if found := _OPTION.search(wrong):
        name = found[1].partition(".init_args")[0].rpartition(".")[2]
        instead = _INSTEAD.get(name) or closest(name, _options_of(owner))
        return f"{owner or 'it'} has no option {name!r}{instead}"
    if found := _ATTRIBUTE.search(wrong):
        module = import_module(found[1])
        names = [name for name in {*dir(module), *getattr(module, "__all__", ())} if not name.startswith("_")]
        return f"{found[1]} has no {found[2]!r}{closest(found[2], names)}"
    return wrong


def _options_of(path: str) -> list[str]:
    """The names of the arguments of a class or function, by its import path."""
    import inspect

    module, _, name = path.rpartition(".")
    try:
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, ValueError, TypeError):
        return []


def parser_message(message: str, parser: Any) -> str:
    """What a parser of jsonargparse reports, in one paragraph, with the option that is closest to an unknown one."""
    found = _UNRECOGNIZED.search(message)
    unknown = [each.partition("=")[0] for each in found[1].split() if each.startswith("-")] if found else []
    if not unknown:
        return redact(_paragraph(message))
    options = [name for action in parser._actions for name in action.option_strings]
    return "; ".join(f"there is no option {name}{closest(name, options)}" for name in unknown)
