"""Smaller networks: distillation, pruning of channels, masks of weights."""

from qcompiler.compression.distillation import Distillation, DistillationLoss

__all__ = ["Distillation", "DistillationLoss"]
