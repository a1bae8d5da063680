"""The reference interpreter: runs the folded Relax module in NumPy, to the bit that the formulas say."""

from qcompiler.reference.interpreter import Interpreter, Trace, Value, interpret
from qcompiler.reference.storage import load, save

__all__ = ["Interpreter", "Trace", "Value", "interpret", "load", "save"]
