"""Sums that several blocks share: each writes its part, and a second kernel adds the parts and takes the last step.

The parts lie as ``[groups, splits, pixels, padded channels of a group]`` in memory that the kernel takes for its own run.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from qcompiler.targets.cpu.shapes import ceil_div
from qcompiler.targets.cuda.finish import Finish
from qcompiler.targets.cuda.kernel import Kernel, bind, read, registers, run, store, update, when

THREADS = 128
"""Threads of a block of the second kernel."""

QUAD = 4
"""Sums that a thread reads at once."""


class PartialSums:
    """The parts of the sums of ``pixels`` and ``groups`` of ``channels``, which are padded to ``padded``."""

    def __init__(
        self, finish: Finish, splits: int, pixels: int, groups: int, channels: int, padded: int
    ) -> None:
        self.finish, self.splits, self.pixels = finish, splits, pixels
        self.groups, self.channels, self.padded = groups, channels, padded
        self.sums = T.alloc_buffer((groups * splits * pixels * padded,), "int32", scope="global")

    def write(self, pixel: Expr, part: Expr | int, channel: Expr, sums: Sequence[Expr]) -> None:
        """Writes the sums of a pixel from ``channel`` on, a multiple of four; ``part`` is group times splits plus split."""
        for first in range(0, len(sums), QUAD):
            with when(channel + first < self.padded):
                place = (part * self.pixels + pixel) * self.padded + channel + first
                words = sums[first : first + QUAD]
                run("qc_store_words", update(self.sums, place, QUAD), *words)

    def add(self, kernel: Kernel) -> None:
        """The second kernel: a thread adds four channels of a pixel."""
        quads = ceil_div(self.channels, QUAD)
        tasks = self.pixels * self.groups * quads
        with kernel.launch((ceil_div(tasks, THREADS),), THREADS) as ((block,), thread):
            task = bind(block * THREADS + thread)
            self.finish.start()
            with when(tasks % THREADS == 0 or task < tasks):
                quad = bind(tirx.floormod(task, quads))
                pixel = bind(tirx.floormod(tirx.floordiv(task, quads), self.pixels))
                group = bind(tirx.floordiv(task, quads * self.pixels))
                total, words = registers(QUAD), registers(QUAD)
                for k in range(QUAD):
                    store(total, k, 0)
                with T.serial(0, self.splits) as split:
                    part = group * self.splits + split
                    place = (part * self.pixels + pixel) * self.padded + quad * QUAD
                    run("qc_load_words", update(words, 0, QUAD), read(self.sums, place, QUAD))
                    for k in range(QUAD):
                        store(total, k, total[k] + words[k])
                self.finish.write(pixel, group, bind(quad * QUAD), [total[k] for k in range(QUAD)])
