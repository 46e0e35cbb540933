"""What people look at: pictures, pages, and the validation report, which shows fixed photos under fixed masks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inpaint_module.report.validation_report import ValidationReport

__all__ = ["ValidationReport"]


def __getattr__(name: str) -> Any:
    if name != "ValidationReport":  # imported when asked for: pictures and pages are below it in the house
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("inpaint_module.report.validation_report").ValidationReport
