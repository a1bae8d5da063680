"""Where the time of a run goes, operator by operator, against the peak of the chip."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler import runtime
from qcompiler.driver.data import Array, read_samples
from qcompiler.errors import ConfigError
from qcompiler.runtime import LayerRecord, Manifest

DENSE = ("conv2d", "dense", "float_conv2d", "float_dense")
"""Operators that are summed up to compare them with the peak, where they use an instruction of the chip."""

_FLOAT_PEAKS = {"vfmadd231ps": "float_macs_per_cycle", "vdpbf16ps": "bf16_macs_per_cycle"}
"""Fields of a target's description with the peak of an instruction; that of all others is ``macs_per_cycle``."""


@dataclass(frozen=True)
class ProfileRow:
    """One kernel call.

    Attributes:
        name: the layer; for a kernel that belongs to no layer, the kernel.
        operator: the operator, or ``kernel``.
        dtype: dtype of its output, or empty.
        seconds: mean time of the call.
        macs: multiply-accumulates.
        instruction: multiply-accumulate instruction that it compiled to; None where there is none.
        macs_per_second: ``macs / seconds``; None without multiply-accumulates.
        peak_share: ``macs_per_second`` as a fraction of the chip's peak, where ``instruction`` is used.
    """

    name: str
    operator: str
    dtype: str
    seconds: float
    macs: int
    instruction: str | None
    macs_per_second: float | None
    peak_share: float | None


@dataclass(frozen=True)
class Profile:
    """What :func:`profile` measured.

    Attributes:
        rows: kernel calls in the order they ran.
        dense: the dense convolutions and matrix products with the instruction that does most of their multiplications,
            as one row; None if none has an instruction of the chip.
        total: all kernel calls, as one row.
        threads: threads of one run.
        peak: multiply-accumulates a second that the chip can do with those threads and that instruction.
        peak_source: where ``peak`` comes from, in words.
    """

    rows: tuple[ProfileRow, ...]
    dense: ProfileRow | None
    total: ProfileRow
    threads: int
    peak: float
    peak_source: str


def profile(
    bundle: Path,
    *,
    data: Path | None = None,
    threads: int | None = None,
    require_signature: Path | None = None,
    repeat: int = 50,
    peak: float | None = None,
) -> Profile:
    """Measures every kernel call of a run.

    Args:
        bundle: the bundle's folder.
        data: ``.npz`` whose first sample is run; zeros if not given, which take as long.
        threads: threads of one run; None for all physical cores.
        require_signature: a public key; the bundle must be signed by its owner.
        repeat: runs to average over.
        peak: multiply-accumulates a second of all the threads together; None to derive it from the target's
            description and the measured clock of this machine.

    Raises:
        ConfigError: ``peak`` or ``repeat`` is not positive.
        QCompilerError: the bundle or the data cannot be used.
    """
    if peak is not None and not peak > 0:
        raise ConfigError(f"peak is {peak}; it must be above 0")
    model = runtime.load(bundle, threads, require_signature=require_signature)
    source = "given"
    if peak is None:
        peak, source = _peak(model.manifest, model.threads)
    calls = model.profile(*_inputs(model, data), repeat=repeat)
    peaks = _peaks(model.manifest, peak)
    rows = [_row(call, layer, peaks) for call, layer in attribute(calls, model.manifest.layers)]
    main = _main_instruction(rows)
    if main in _FLOAT_PEAKS:
        source = f"{source}, and as much less as {main} multiplies less"
    return Profile(
        tuple(rows),
        None if main is None else _dense(rows, main, peaks[main]),
        _sum("total", rows, peak if main is None else peaks[main]),
        model.threads,
        peak if main is None else peaks[main],
        source,
    )


def attribute(
    calls: Sequence[tuple[str, float]], layers: Sequence[LayerRecord]
) -> list[tuple[tuple[str, float], LayerRecord | None]]:
    """Each kernel call with its layer.

    Layers of the same shape share a kernel, and both calls and layers are in the order they run: the n-th
    call of a kernel is that of the n-th layer that has it.
    """
    waiting: defaultdict[str, list[LayerRecord]] = defaultdict(list)
    for layer in reversed(layers):
        waiting[layer.function].append(layer)
    return [(call, waiting[call[0]].pop() if waiting[call[0]] else None) for call in calls]


def _peaks(manifest: Manifest, peak: float) -> dict[str, float]:
    """Multiply-accumulates a second at most of each instruction of the layers, where that of integers is ``peak``."""
    instructions = {layer.instruction for layer in manifest.layers if layer.instruction is not None}
    integer = int(_field(manifest.target, "macs_per_cycle")) if instructions & _FLOAT_PEAKS.keys() else 1
    return {
        name: peak * int(_field(manifest.target, _FLOAT_PEAKS[name])) / integer
        if name in _FLOAT_PEAKS
        else peak
        for name in instructions
    }


def _main_instruction(rows: Sequence[ProfileRow]) -> str | None:
    """The instruction that does most of the multiplications of dense operators; None if none does any."""
    work: Counter[str] = Counter()
    for row in rows:
        if row.operator in DENSE and row.instruction is not None:
            work[row.instruction] += row.macs
    return work.most_common(1)[0][0] if work else None


def _dense(rows: Sequence[ProfileRow], instruction: str, peak: float) -> ProfileRow:
    """The sum of the dense operators with ``instruction``."""
    summed = [row for row in rows if row.operator in DENSE and row.instruction == instruction]
    return _sum(f"dense, {instruction if instruction in _FLOAT_PEAKS else 'integer'}", summed, peak)


def _row(call: tuple[str, float], layer: LayerRecord | None, peaks: Mapping[str, float]) -> ProfileRow:
    function, seconds = call
    if layer is None:
        return ProfileRow(function, "kernel", "", seconds, 0, None, None, None)
    rate = layer.macs / seconds if layer.macs and seconds > 0 else None
    return ProfileRow(
        layer.name,
        layer.operator,
        layer.dtype,
        seconds,
        layer.macs,
        layer.instruction,
        rate,
        rate / peaks[layer.instruction] if rate is not None and layer.instruction is not None else None,
    )


def _sum(name: str, rows: Sequence[ProfileRow], peak: float) -> ProfileRow:
    seconds, macs = sum(row.seconds for row in rows), sum(row.macs for row in rows)
    rate = macs / seconds if macs and seconds > 0 else None
    return ProfileRow(name, "", "", seconds, macs, None, rate, None if rate is None else rate / peak)


def _peak(manifest: Manifest, threads: int) -> tuple[float, str]:
    """Multiply-accumulates a second of ``threads`` cores of this machine, and where the number comes from."""
    if manifest.architectures:
        return _gpu_peak()
    from qcompiler.driver.clock import clock_hertz
    from qcompiler.targets.registry import resolve

    per_cycle = int(_field(manifest.target, "macs_per_cycle"))
    instruction = _field(manifest.target, "instruction")
    hertz = clock_hertz(resolve("native"))
    return per_cycle * hertz * threads, (
        f"{per_cycle} MAC/cycle with {instruction} x {hertz / 1e9:.2f} GHz measured x {threads} cores"
    )


def _gpu_peak() -> tuple[float, str]:
    """Multiply-accumulates a second of the first GPU at its highest clock, and where the number comes from.

    The multiprocessor's share is that of the GPU's own architecture, whatever architecture the code was compiled for.
    """
    from qcompiler.runtime.gpu import first_gpu
    from qcompiler.targets.cuda import CHIPS

    gpu = first_gpu()
    chip = next((c for c in CHIPS if c.architectures == (f"sm_{gpu.capability}",)), None)
    if chip is None or not gpu.hertz or not gpu.multiprocessors:
        raise ConfigError(
            f"the peak of this GPU is not known: its compute capability is {gpu.capability / 10}, its clock "
            f"{gpu.hertz / 1e9:.2f} GHz; give the peak of the whole chip: --peak GMACS"
        )
    return chip.macs_per_cycle * gpu.multiprocessors * gpu.hertz, (
        f"{chip.macs_per_cycle} MAC/cycle of {chip.name} x {gpu.multiprocessors} multiprocessors x "
        f"{gpu.hertz / 1e9:.2f} GHz, the highest clock that the driver names"
    )


def _field(target: Mapping[str, Any], name: str) -> Any:
    if name not in target:
        raise ConfigError(f"the bundle's target has no {name}; give the peak: --peak GMACS")
    return target[name]


def _inputs(model: runtime.Model, data: Path | None) -> tuple[Array, ...]:
    if data is None:
        return tuple(np.zeros(spec.shape, spec.dtype) for spec in model.inputs)
    return next(read_samples(data, model.inputs, limit=1).batches())[1]
