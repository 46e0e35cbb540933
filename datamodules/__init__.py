"""Webdataset shards in, batches on the device out."""

from datamodules.webdataset_datamodule import WebDatasetDataModule

__all__ = ["WebDatasetDataModule"]
