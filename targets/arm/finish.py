"""The end of a tile: sums of int32 become stored activations or reals, and are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.arm import memory
from qcompiler.targets.arm.layouts import BLOCK, VECTOR
from qcompiler.targets.arm.requantization import Requantization
from qcompiler.targets.cpu import epilogue as epilogues
from qcompiler.targets.cpu.storage import SIGNED, Storage
from qcompiler.targets.cpu.vectors import Body, broadcast, ramp, shuffle


@dataclass(frozen=True)
class Epilogue(epilogues.Epilogue[Requantization]):
    """What happens to an accumulator, the bias included; activations are stored as q - 128."""

    storage: Storage = SIGNED


class Finish:
    """Writes the results of a kernel whose constants are ``[blocks, lanes]`` and whose output is ``extents``.

    Attributes:
        arguments: of the kernel: bias, multiplier, with a residual the residual and its multiplier and offset, and the
            output.
    """

    def __init__(self, epilogue: Epilogue, blocks: int, lanes: int, extents: Sequence[int]) -> None:
        self.epilogue, self.lanes = epilogue, lanes
        dtypes = {
            "bias": "int32",
            "multiplier": "float32",
            "residual_multiplier": "int32",
            "residual_offset": "int32",
        }
        self.constants = {
            name: tirx.decl_buffer((blocks, lanes), dtype, name=name) for name, dtype in dtypes.items()
        }
        self.residual = tirx.decl_buffer(tuple(extents), "int8", name="residual")
        self.out = tirx.decl_buffer(tuple(extents), epilogue.dtype, name="out")
        extra = []
        if epilogue.residual_shift is not None:
            extra = [self.residual, self.constants["residual_multiplier"], self.constants["residual_offset"]]
        self.arguments = [self.constants["bias"], self.constants["multiplier"], *extra, self.out]

    def constant(self, name: str, vector: Expr) -> Expr:
        """The values of a vector of four channels."""
        per_block = self.lanes // VECTOR
        index = [vector // per_block, ramp(vector % per_block * VECTOR, VECTOR)]
        return tirx.BufferLoad(self.constants[name], index)

    def write(
        self, body: Body, sums: Sequence[Expr], vector: Expr, index: Sequence[Expr], channels: int, channel: Expr | None = None
    ) -> None:  # fmt: skip
        """Writes the sums of a pixel, vectors from ``vector`` on with ``channels`` channels, 16 channels at once.

        ``index`` is the pixel's place in the output, and ``channel`` the first channel if it is not that of ``vector``.
        """
        per_store = BLOCK // VECTOR
        for first in range(0, len(sums), per_store):
            group = sums[first : first + per_store]
            valid = min(channels - first * VECTOR, len(group) * VECTOR)
            place = (vector + first) * VECTOR if channel is None else channel + first * VECTOR
            values = self._scaled(body, group, vector + first, index, place, valid)
            last = self.epilogue.requantization
            if last is not None:
                memory.store(body, self.out, index, place, valid, body.name(last.of_vectors(values), "bytes"))
                continue
            for k, value in enumerate(values):
                count = min(VECTOR, valid - k * VECTOR)
                memory.store(body, self.out, index, place + k * VECTOR, count, body.name(value, "real"))

    def _scaled(
        self, body: Body, sums: Sequence[Expr], vector: Expr, index: Sequence[Expr], channel: Expr, valid: int
    ) -> list[Expr]:  # fmt: skip
        """Sums with their residuals, times the multipliers."""
        shift = self.epilogue.residual_shift
        shares: list[Expr] = []
        if shift is not None:
            size = VECTOR * len(sums)
            stored = memory.load(body, self.residual, index, channel, valid, size)
            wide = body.name(stored.astype(f"int32x{size}"), "residual")
            for k in range(len(sums)):
                part = wide if len(sums) == 1 else shuffle([wide], range(4 * k, 4 * k + 4))
                share = part * self.constant("residual_multiplier", vector + k)
                share = share + self.constant("residual_offset", vector + k)
                shares.append(share >> broadcast(shift, "int32", VECTOR) if shift else share)
        values = []
        for k, total in enumerate(sums):
            joined = total + shares[k] if shares else total
            values.append(joined.astype("float32x4") * self.constant("multiplier", vector + k))
        return values
