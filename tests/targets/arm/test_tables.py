"""The table that ``tbl`` looks into, in the order of stored bytes."""

from __future__ import annotations

import numpy as np

from qcompiler.targets.arm.tables import stored_table


def test_stored_index_finds_the_stored_result() -> None:
    table = np.random.default_rng(0).permutation(256).astype(np.uint8)
    stored = stored_table(table)
    for q in range(256):
        index = np.array(q - 128, np.int8).view(np.uint8)
        assert int(stored[index]) == int(table[q]) - 128
