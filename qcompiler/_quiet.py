"""Silences what torch and torchao say of themselves while they are imported; nothing of it concerns the user.

torchao warns of every CUDA library of its own that this machine cannot load, and of an enumeration that it registers
with torch in an old way; torch warns of its own use of an old name when a graph is copied.
"""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """To be called before torchao is imported."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec.*", category=FutureWarning)
