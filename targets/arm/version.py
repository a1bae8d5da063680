"""The version of the kernels and schedules: what a tuning log was made with."""

SCHEDULE_VERSION = 3
"""Raised by hand when a kernel's computation or its sketches change, so that decisions tuned before no longer fit."""
