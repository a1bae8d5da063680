"""Quantization-aware training: what is trained is what runs."""

from qcompiler.quantization.training.module import QATModule
from qcompiler.quantization.training.prepare import prepare_training

__all__ = ["QATModule", "prepare_training"]
