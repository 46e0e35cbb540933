"""What is wrong with the data of a config: read, measured, checked and shown."""

from datamodules.doctor.command import main
from datamodules.doctor.examination import Examination, examine
from datamodules.doctor.findings import Finding

__all__ = [
    "Examination",
    "Finding",
    "examine",
    "main",
]
