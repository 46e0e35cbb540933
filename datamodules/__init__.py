"""Webdataset shards in, batches on the device out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.webdataset_datamodule import WebDatasetDataModule

__all__ = ["WebDatasetDataModule"]


def __getattr__(name: str) -> Any:
    """Import the data module, and Lightning with it, only when it is asked for: the commands here do without."""
    if name in __all__:
        from datamodules.webdataset_datamodule import WebDatasetDataModule

        return WebDatasetDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
