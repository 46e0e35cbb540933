"""Webdataset shards in, batches on the device out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.decode import (
        AlphaMask,
        CaptionOptions,
        CocoMask,
        DecoderOptions,
        FileMask,
        LabelMap,
        MaskOptions,
        MaskSource,
    )
    from datamodules.order import LoadingOptions, OrderOptions
    from datamodules.samples import Samples
    from datamodules.stream_datamodule import DataCounters
    from datamodules.webdataset_datamodule import WebDatasetDataModule

_HOMES = {
    "AlphaMask": "decode",
    "CaptionOptions": "decode",
    "CocoMask": "decode",
    "DataCounters": "stream_datamodule",
    "DecoderOptions": "decode",
    "FileMask": "decode",
    "LabelMap": "decode",
    "LoadingOptions": "order",
    "MaskOptions": "decode",
    "MaskSource": "decode",
    "OrderOptions": "order",
    "Samples": "samples",
    "WebDatasetDataModule": "webdataset_datamodule",
}
__all__ = [
    "AlphaMask",
    "CaptionOptions",
    "CocoMask",
    "DataCounters",
    "DecoderOptions",
    "FileMask",
    "LabelMap",
    "LoadingOptions",
    "MaskOptions",
    "MaskSource",
    "OrderOptions",
    "Samples",
    "WebDatasetDataModule",
]


def __getattr__(name: str) -> Any:
    """Import the data module, and Lightning with it, only when it is asked for: the commands here do without."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
