"""Every test of quantization starts from the same random numbers, and computes its small tensors in one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    # Threads gain nothing on tensors this small, and wait for one another on a busy machine.
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
