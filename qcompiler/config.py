"""Options of a compilation: a frozen dataclass that is checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args

from qcompiler.errors import ConfigError

CalibrationMethod = Literal["minmax", "moving-average", "percentile", "mse", "entropy", "auto"]
BiasCorrection = Literal["off", "fast", "empirical"]
Effort = Literal["fast", "balanced", "max"]


@dataclass(frozen=True)
class Methods:
    """How a model is quantized: what an effort chooses, and each option of its own overrides.

    Attributes:
        calibration_method: how activation ranges are found.
        equalize: cross-layer equalization.
        smooth: SmoothQuant for linear layers behind layer norms.
        adaptive_rounding: weights rounded such that the layers' outputs change least.
        bias_correction: from measured means (``empirical``) or batch norms' statistics (``fast``).
    """

    calibration_method: CalibrationMethod = "minmax"
    equalize: bool = False
    smooth: bool = False
    adaptive_rounding: bool = False
    bias_correction: BiasCorrection = "off"


EFFORTS: dict[Effort, Methods] = {
    "fast": Methods(),
    "balanced": Methods(calibration_method="auto", bias_correction="empirical"),
    "max": Methods("auto", equalize=True, smooth=True, adaptive_rounding=True, bias_correction="empirical"),
}

Precision = Literal["int8", "fp32", "bf16", "fp16"]
"""What a layer computes in: integers, or float with weights (and, where the chip multiplies it, inputs) of so many bits."""


QUANTIZATION_OPTIONS = (
    "effort", "calibration_method", "equalize", "smooth", "adaptive_rounding", "bias_correction", "percentile",
    "averaging_constant", "symmetric_activations", "skip_first", "skip_last", "keep_float",
)  # fmt: skip
"""Fields of :class:`CompileConfig` that say how a float model is quantized, and mean nothing for a quantized one."""


@dataclass(frozen=True)
class CompileConfig:
    """Options of :func:`qcompiler.compile`; the command line's options have the same names.

    Attributes:
        target: name of a target description, or ``native`` for the CPU this runs on.
        precision: what layers compute in: ``int8`` needs calibration data, the float ones do not.
        layer_precision: names, as in ``keep_float``, with a precision that goes before ``precision``; of several names
            that fit a layer, the innermost module's counts.
        weights_only: linear layers that stay in float have int8 weights, one scale an output channel, and float32
            activations.
        effort: what is done to keep the accuracy; chooses the following five where they are None.
        calibration_method: how activation ranges are found in the calibration data; ``auto`` is the best of the others
            for each tensor, by the error that its quantization causes in the layers that read it.
        equalize: give the channels between two layers ranges alike, by scaling their weights.
        smooth: move ranges from the inputs of linear layers into their weights (SmoothQuant).
        adaptive_rounding: round weights such that the layers' outputs change least.
        bias_correction: take the mean error of layers back, measured (``empirical``) or from batch norms (``fast``).
        percentile: for ``percentile``, the share of values inside the range, in percent, in (50, 100].
        averaging_constant: for ``moving-average``, the weight of the newest batch, in (0, 1].
        symmetric_activations: quantize activations with the zero point in the middle, 128, as TensorRT needs it; it costs
            up to a bit where values have one sign.
        skip_first: leave the first convolution or linear layer in float.
        skip_last: leave the last convolution or linear layer in float.
        keep_float: names of operators (``conv2d``) or of modules (``layer1.0.conv1``) left in float.
        plan: a file with a precision for each layer (``qcompiler.quantization.plan``), or None for int8 wherever
            there is a kernel. ``skip_first``, ``skip_last`` and ``keep_float`` come before it.
        gate: measure each layer in int8 and in float on this machine, and leave in float what is faster there.
        embed_reference: store the folded module in the bundle, so that ``verify`` works on it.
        dump_ir: folder that gets one numbered file a pass, or None.
        tuned: use the tuning logs that come with the compiler.
        log: a folder with a tuning log to use besides; it comes first.
        dim: of an ONNX model, values of symbolic extents as ``NAME=N``; an input's first axis is 1 if it is not named.
        progress: show a progress bar for long work.
    """

    target: str = "native"
    precision: Precision = "int8"
    layer_precision: Mapping[str, Precision] = field(default_factory=dict, hash=False)
    weights_only: bool = False
    effort: Effort = "fast"
    calibration_method: CalibrationMethod | None = None
    equalize: bool | None = None
    smooth: bool | None = None
    adaptive_rounding: bool | None = None
    bias_correction: BiasCorrection | None = None
    percentile: float = 99.99
    averaging_constant: float = 0.01
    symmetric_activations: bool = False
    skip_first: bool = False
    skip_last: bool = False
    keep_float: tuple[str, ...] = ()
    plan: Path | None = None
    gate: bool = False
    embed_reference: bool = True
    dump_ir: Path | None = None
    tuned: bool = True
    log: Path | None = None
    dim: tuple[str, ...] = ()
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("plan", "dump_ir", "log"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))
        precisions = get_args(Precision)
        for where, precision in (("precision", self.precision), *self.layer_precision.items()):
            if precision not in precisions:
                raise ConfigError(
                    f"{where} is {precision!r}, which is no precision; known: {', '.join(precisions)}"
                )
        if self.plan is not None and self.precision != "int8":
            raise ConfigError(
                f"plan and precision {self.precision} exclude each other: a plan has a default of its own"
            )
        for name, kind in (
            ("effort", Effort), ("calibration_method", CalibrationMethod), ("bias_correction", BiasCorrection),
        ):  # fmt: skip
            value, known = getattr(self, name), get_args(kind)
            if value not in known and (value is not None or name == "effort"):
                raise ConfigError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        if not 50.0 < self.percentile <= 100.0:
            raise ConfigError(f"percentile is {self.percentile}; it must be above 50 and at most 100")
        if not 0.0 < self.averaging_constant <= 1.0:
            raise ConfigError(
                f"averaging_constant is {self.averaging_constant}; it must be above 0 and at most 1"
            )
        if self.gate and self.plan is not None:
            raise ConfigError("gate and plan both say what stays in float; give one of them")
        if not self.target:
            raise ConfigError("target is empty; run 'qcompile targets' for the known ones")
        for text in self.dim:
            name, _, extent = text.rpartition("=")
            if not name or not extent.isdecimal() or int(extent) < 1:
                raise ConfigError(f"dim is {text!r}; give NAME=N with a positive number, as batch=4")

    @property
    def dims(self) -> dict[str, int]:
        """The values that ``dim`` gives, by name."""
        return {name: int(extent) for name, _, extent in (text.rpartition("=") for text in self.dim)}

    @property
    def methods(self) -> Methods:
        """How the model is quantized: what ``effort`` chooses, with the options that are given."""
        chosen = {f.name: getattr(self, f.name) for f in fields(Methods)}
        return replace(EFFORTS[self.effort], **{k: v for k, v in chosen.items() if v is not None})

    @property
    def quantizes(self) -> bool:
        """Whether any layer may be computed in integers."""
        return "int8" in (self.precision, *self.layer_precision.values())

    @property
    def quantization(self) -> dict[str, object]:
        """Those of :data:`QUANTIZATION_OPTIONS` that are not the defaults."""
        defaults = {f.name: f.default for f in fields(self)}
        given = {name: getattr(self, name) for name in QUANTIZATION_OPTIONS}
        return {name: value for name, value in given.items() if value != defaults[name]}

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in fields(cls))


@dataclass(frozen=True)
class TuneConfig:
    """Options of tuning; the command line's options have the same names.

    Attributes:
        trials: candidates to measure, at most, all layers together.
        minutes: minutes to search, at most; None for no limit.
        layers: only kernels of layers whose name matches this shell pattern, or None for all.
        jobs: candidates that are built at once.
        threads: numbers of threads that every candidate is measured at; none for 1 and all physical cores.
        log: folder of the tuning log; None for ``tuning_logs/TARGET`` below the working directory.
        min_gain: end when less than this share of the model's time is expected to be saved.
        batch: candidates of one kernel between two looks at where to go on.
        seed: of the search.
        rpc: ``HOST:PORT`` of a TVM RPC tracker whose devices measure, or None for this machine.
        key: the devices' key at the tracker.
        rpc_timeout: seconds that a device has for one candidate.
    """

    trials: int = 200
    minutes: float | None = None
    layers: str | None = None
    jobs: int = 2
    threads: tuple[int, ...] = ()
    log: Path | None = None
    min_gain: float = 0.005
    batch: int = 8
    seed: int = 1
    rpc: str | None = None
    key: str | None = None
    rpc_timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("trials", "jobs", "batch", "seed"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"minutes is {self.minutes}; it must be above 0")
        if not 0 <= self.min_gain < 1:
            raise ConfigError(f"min_gain is {self.min_gain}; it must be at least 0 and below 1")
        if any(t < 1 for t in self.threads):
            raise ConfigError(f"threads is {self.threads}; give positive numbers")
        if self.rpc_timeout <= 0:
            raise ConfigError(f"rpc_timeout is {self.rpc_timeout}; it must be above 0")
        if (self.rpc is None) != (self.key is None):
            raise ConfigError("rpc and key go together: the tracker, and the key that its devices have there")
        if self.rpc is not None:
            host, _, port = self.rpc.rpartition(":")
            if not host or not port.isdecimal():
                raise ConfigError(f"rpc is {self.rpc!r}; give HOST:PORT of the tracker, as in 127.0.0.1:9190")
