"""Models without the content of their weights, for a step that takes no memory, and the bytes that it would take.

Torch's fake tensors and dispatch modes are no promise of its own, and are used here alone, tested with torch 2.14;
tests/test_lightning_private.py fails where a name has changed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def _without_content(value: Tensor) -> Tensor:
    with no_content():
        made = torch.empty_like(value, device="cpu")
        return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made


def config_model(path: str, subfolder: str | None, dtype: Any, **options: Any) -> Any:
    """A model of diffusers or transformers by its config alone, on the meta device.

    Args:
        path: a folder or a hub name.
        subfolder: folder inside `path`.
        dtype: of the weights.
        options: of `loading_options`.

    Raises:
        OSError: no config there.
    """
    import diffusers

    config = diffusers.AutoencoderKL.load_config(path, subfolder=subfolder or "", **options)  # of any model class
    if "_class_name" in config:
        with torch.device("meta"):
            made = getattr(diffusers, config["_class_name"]).from_config(config)
        return nn.Module.to(made, dtype)  # diffusers' own warns
    import transformers

    model_class = getattr(transformers, config["architectures"][0])
    read = model_class.config_class.from_pretrained(path, subfolder=subfolder or "", **options)
    with torch.device("meta"):
        return model_class(read).to(dtype)


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
