"""Webdataset shards in, batches on the device out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.data_counters import DataCounters
    from datamodules.decode import AlphaMask, CocoMask, FileMask, LabelMap, MaskSource
    from datamodules.webdataset_datamodule import WebDatasetDataModule

__all__ = ["AlphaMask", "CocoMask", "DataCounters", "FileMask", "LabelMap", "MaskSource", "WebDatasetDataModule"]


def __getattr__(name: str) -> Any:
    """Import the data module, and Lightning with it, only when it is asked for: the commands here do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = {"DataCounters": "data_counters", "WebDatasetDataModule": "webdataset_datamodule"}
    return getattr(import_module(f"{__name__}.{homes.get(name, 'decode')}"), name)
