"""Evaluation reports: the record, its tables and its plot. Reading one needs neither torch nor matplotlib."""

from cartridge_core.report.comparison import Comparison
from cartridge_core.report.evaluation_report import REPORT_FILE, ROWS_FILE, EvaluationReport

__all__ = ["REPORT_FILE", "ROWS_FILE", "Comparison", "EvaluationReport"]
