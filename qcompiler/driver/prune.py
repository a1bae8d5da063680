"""Captures a module and prunes its channels."""

from __future__ import annotations

from typing import Any

import torch

from qcompiler.compression import Pruned, prune
from qcompiler.frontend import capture


def prune_channels(
    model: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...], reduction: float, **options: Any
) -> Pruned:
    """A smaller module; see :func:`qcompiler.prune_channels`."""
    program = capture.capture(model, example_inputs)
    return prune(model, program, tuple(example_inputs), reduction=reduction, **options)
