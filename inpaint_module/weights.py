"""Where a model's weights come from: a folder, what ships with the package, or the hub; or from nowhere, for
`fit --estimate`: then the model has shapes and takes no memory.

Torch's fake tensors and dispatch modes are no promise of its own, and are used here alone, tested with torch 2.14;
tests/test_lightning_private.py fails where a name has changed.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASSETS = Path(__file__).parent / "assets"
_SCHEME = "embedded:"
_MODELS = ("inpainter", "vae")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
_SECONDS = 5.0  # to reach the hub


def local_folder(path: str) -> str:
    """`embedded:NAME` -> its folder; any other path or hub name as it is.

    Raises:
        ValueError: nothing of that name ships with the package.
    """
    if not path.startswith(_SCHEME):
        return path
    name = path.removeprefix(_SCHEME)
    if name not in _MODELS:
        raise ValueError(f"expected one of {', '.join(_SCHEME + each for each in _MODELS)}, got {path!r}")
    return str(ASSETS / name)


def loading_options(path: str, what: str) -> dict[str, Any]:
    """How diffusers and transformers are to load from a path: from the hub's cache alone if the hub is out of reach.

    Without this they try again and again for more than a minute, and then name a file that is not there.

    Args:
        path: a folder, or a name on the hub.
        what: is loaded, for the error: "VAE".

    Raises:
        ValueError: neither a folder here nor a name that the hub could have; or the hub cannot be reached and nothing
            of this name has been downloaded before.
    """
    if Path(path).is_dir():
        return {}
    expected = f"{what}: expected a folder, or a name on the hub such as org/model, got {path!r}"
    if not _HUB_NAME.fullmatch(path):
        raise ValueError(f"{expected}: there is no such folder")
    if not (reason := _hub_is_out_of_reach()):
        return {}
    if not _is_downloaded(path):
        raise ValueError(
            f"{expected}: there is no such folder here, it has not been downloaded before, and the hub cannot be "
            f"reached ({reason})"
        )
    return {"local_files_only": True}


@cache
def _hub_is_out_of_reach() -> str:
    """Why, or an empty text if it answers; asked once."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as error:  # which kind, depends on the client that this version of huggingface_hub uses
        return str(error)
    return ""


def _is_downloaded(name: str) -> bool:
    """Whether the hub's cache has something of a model."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")).is_dir()


NEEDS_CONTENT = (DataDependentOutputException, DynamicOutputShapeException, NotImplementedError)  # of an operation
_WEIGHTLESS: ContextVar[bool] = ContextVar("weightless", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """While this lasts, models are made by their configs alone, of tensors that have shapes but no content."""
    token = _WEIGHTLESS.set(True)
    try:
        yield
    finally:
        _WEIGHTLESS.reset(token)


def weightless() -> bool:
    """Whether models are to be made without their weights."""
    return _WEIGHTLESS.get()


@cache
def no_content() -> FakeTensorMode:
    """In this mode operations give tensors of the right shapes and dtypes, and compute nothing."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def runnable(module: nn.Module) -> nn.Module:
    """Let a module on the meta device be called in `no_content`, as if it were on the CPU; it cannot be moved then."""
    made: dict[int, Any] = {}  # tied weights stay tied
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, value in tensors.items():
                if value is not None and value.is_meta:
                    if id(value) not in made:
                        made[id(value)] = value, _without_content(value)  # held, so that the id stays its own
                    tensors[name] = made[id(value)][1]
        part.to = lambda *_, part=part, **__: part  # type: ignore[method-assign]
    return module


def cast_without_content(module: nn.Module, dtype: torch.dtype) -> None:
    """The floating-point parameters of a `runnable` module in another dtype; torch's own `to` cannot."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None and value.is_floating_point():
                with no_content():
                    part._parameters[name] = nn.Parameter(value.detach().to(dtype), value.requires_grad)


def _without_content(value: Tensor) -> Tensor:
    with no_content():
        made = torch.empty_like(value, device="cpu")
        return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


def config_model(path: str, subfolder: str | None, dtype: Any, kind: Any = None, **options: Any) -> Any:
    """A model of diffusers or transformers by its config alone, on the meta device.

    Args:
        path: a folder or a hub name.
        subfolder: folder inside `path`.
        dtype: of the weights.
        kind: the class of a model of diffusers; None for the one that its config names.
        options: of `loading_options`.

    Raises:
        OSError: no config there.
    """
    import diffusers

    config = diffusers.AutoencoderKL.load_config(path, subfolder=subfolder or "", **options)  # of any model class
    if "_class_name" in config:
        with torch.device("meta"):
            made = (kind or getattr(diffusers, config["_class_name"])).from_config(config)
        return nn.Module.to(made, dtype)  # diffusers' own warns
    import transformers

    model_class = getattr(transformers, config["architectures"][0])
    read = model_class.config_class.from_pretrained(path, subfolder=subfolder or "", **options)
    with torch.device("meta"):
        return model_class(read).to(dtype)


def kept_on_cpu(weights: Iterable[Tensor], device: torch.device) -> None:
    """Hold weights on the CPU, ready to be sent to a device by `brought_to`."""
    for each in weights:
        home = each.data.to("cpu")
        each.data = home.pin_memory() if device.type == "cuda" and not home.is_pinned() else home


@contextmanager
def brought_to(module: nn.Module, device: torch.device) -> Iterator[None]:
    """While this lasts, the frozen weights of a module on a device; what is there already stays.

    What the backward pass needs of them there, autograd holds until then; nothing is sent back.
    """
    away = [(each, each.data) for each in frozen(module) if _is_away(each, device)]
    try:
        for each, home in away:
            each.data = _sent(home, device)
        yield
    finally:
        for each, home in away:
            each.data = home


def _sent(home: Tensor, device: torch.device) -> Tensor:
    return home.to(device, non_blocking=True)


def _is_away(weight: Tensor, device: torch.device) -> bool:
    return weight.device.type == "cpu" and device.type != "cpu"


def frozen(module: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    """Parameters and buffers that do not train; of the module itself alone without `recurse`."""
    return (each for each in chain(module.parameters(recurse), module.buffers(recurse)) if not each.requires_grad)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it lasts, until they are freed.

    Attributes:
        now: that are alive.
        peak: most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it made; a view of what was there before is not made."""
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, Tensor):
                self._seen.add(each.untyped_storage())
        out = func(*args, **kwargs or {})
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._count(each.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size
