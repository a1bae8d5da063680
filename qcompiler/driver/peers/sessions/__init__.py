"""Engines as a measured process sees them.

Each file stands alone: beyond Python and NumPy it imports its engine, in ``import_engine``, and nothing of qcompiler,
because it may run in an interpreter that has no qcompiler, and because whatever it imported would count as the
engine's memory and start-up time. Every ``open`` function takes the model's path and a number of threads, and returns
a function from one array an input to a sequence of outputs.
"""
