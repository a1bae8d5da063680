"""How results look: tables for people, JSON for programs, progress bars for the patient."""

from qcompiler.report.bars import Progress, progress
from qcompiler.report.encode import to_json
from qcompiler.report.tables import facts, show, table
from qcompiler.report.units import decibels, each, gmacs, microseconds, milliseconds, percent, schedules, size

__all__ = [
    "Progress",
    "decibels",
    "each",
    "facts",
    "gmacs",
    "microseconds",
    "milliseconds",
    "percent",
    "progress",
    "schedules",
    "show",
    "size",
    "table",
    "to_json",
]
