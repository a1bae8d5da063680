"""Tuning: searches the schedules of a model's kernels, keeps what was measured, and lets every compile use it."""
