"""The validation report: fixed photos under fixed masks, on one page."""

from inpaint_module.report.validation_report import ValidationReport

__all__ = ["ValidationReport"]
