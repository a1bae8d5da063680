"""The version of qcompiler."""

__version__ = "0.1.0"
