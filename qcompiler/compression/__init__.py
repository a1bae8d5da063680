"""Smaller networks: distillation, pruning of channels, masks of weights."""

from qcompiler.compression.distillation import Distillation, DistillationLoss
from qcompiler.compression.masks import Masks, mask_weights
from qcompiler.compression.prune import Pruned, PrunedLayer, prune

__all__ = ["Distillation", "DistillationLoss", "Masks", "Pruned", "PrunedLayer", "mask_weights", "prune"]
