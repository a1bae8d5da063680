"""How results look: tables for people, JSON for programs, progress bars for the patient."""

from qcompiler.report.analysis import analysis_page, analysis_table
from qcompiler.report.bars import Progress, progress
from qcompiler.report.encode import to_json
from qcompiler.report.optimizations import optimizations
from qcompiler.report.tables import facts, show, table
from qcompiler.report.units import decibels, each, gmacs, microseconds, milliseconds, percent, schedules, size

__all__ = [
    "Progress",
    "analysis_page",
    "analysis_table",
    "decibels",
    "each",
    "facts",
    "gmacs",
    "microseconds",
    "milliseconds",
    "optimizations",
    "percent",
    "progress",
    "schedules",
    "show",
    "size",
    "table",
    "to_json",
]
