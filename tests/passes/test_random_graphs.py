"""Random small graphs of quantized operators through the whole integer path: compiled and interpreted, every bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from qc_modules import (
    ARM_TARGETS,
    Emit,
    build,
    dq,
    dq_weight,
    make,
    q,
    reference,
    run,
    runs_here,
    why_not_emulated,
)
from tvm import relax

from qcompiler.operators import INTEGER_OPERATORS
from qcompiler.passes import pipeline
from qcompiler.passes.graph import bindings, dtype, op_name
from qcompiler.targets import registry

MOVEMENT = frozenset(
    {
        "relax.reshape",
        "relax.permute_dims",
        "relax.concat",
        "relax.strided_slice",
        "relax.nn.pad",
        "relax.image.resize2d",
    }
)
SCALES = (1e-6, 1e-4, 0.007, 0.02, 0.5, 1.0, 30.0, 1e3)
ZERO_POINTS = (0, 1, 7, 128, 254, 255)
UNARY = {
    "relu": relax.op.nn.relu,
    "silu": relax.op.nn.silu,
    "sigmoid": relax.op.sigmoid,
    "tanh": relax.op.tanh,
    "gelu": relax.op.nn.gelu,
    "hard tanh": lambda x: relax.op.clip(x, -1, 1),
}
IMAGE_OPERATORS = ("conv", "conv", "depthwise", "add", "mul", "concat", "max pool", "avg pool", "mean", "unary", "upsample",
                   "pad", "slice", "flatten", "flatten")  # fmt: skip
VECTOR_OPERATORS = ("linear", "linear", "linear", "add", "mul", "concat", "unary", "slice")


@dataclass(frozen=True)
class Node:
    """A quantized tensor of the graph."""

    var: Any
    shape: tuple[int, ...]
    scale: float
    zero_point: int

    @property
    def real(self) -> relax.Expr:
        return dq(self.var, self.scale, self.zero_point)


class Graph:
    """Builds a graph from the choices that a seed makes."""

    def __init__(self, seed: int, emit: Emit) -> None:
        self.emit = emit
        self.nodes: list[Node] = []
        self.rng = np.random.default_rng(seed)

    def pick(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def flip(self) -> bool:
        return bool(self.rng.integers(2))

    def quantized(self, real: relax.Expr, near: float | None = None, same: Node | None = None) -> Node:
        """``real`` quantized with drawn parameters: near the scale ``near``, or those of ``same``."""
        real = self.emit(real) if isinstance(real, relax.Call) else real
        if same is not None:
            scale, zero = same.scale, same.zero_point
        else:
            scale = self.pick(*SCALES) if near is None else near * self.pick(1.0, 1.0, 0.3, 1.7, 0.01, 100.0)
            zero = self.pick(*ZERO_POINTS)
        scale = float(np.float32(np.clip(scale, 1e-6, 1e3)))
        node = Node(self.emit(q(real, scale, zero)), tuple(int(d) for d in real.ty.shape), scale, zero)
        self.nodes.append(node)
        return node

    def weight(self, shape: tuple[int, ...]) -> tuple[relax.Expr, np.ndarray]:
        kind = self.pick("random", "extreme", "zero channels")
        values = self.rng.integers(-127, 128, shape)
        if kind == "extreme":
            values = np.where(values < 0, -127, 127)
        elif kind == "zero channels":
            values[::2] = 0
        scales = np.exp(self.rng.uniform(np.log(1e-5), np.log(1e-1), shape[0])).astype(np.float32)
        if self.pick(False, False, True):
            scales[0] = np.float32(1e-20)  # a channel of weights that vanish
        return self.emit(dq_weight(values.astype(np.int8), scales)), scales

    def layer(self, x: Node, real: relax.Expr, scales: np.ndarray, axes: tuple[int, ...], taps: int) -> Node:
        """Bias, perhaps a residual and an activation after ``real``."""
        real = self.emit(real)
        channels = scales.size
        unit = float(np.median(scales)) * x.scale
        if self.pick(True, True, False):
            bias = self.rng.normal(size=channels) * unit * self.pick(0.0, 100.0, 1e6)
            real = self.emit(relax.op.add(real, relax.const(bias.reshape(-1, *axes).astype(np.float32))))
        shape = tuple(int(d) for d in real.ty.shape)
        residuals = [n for n in self.nodes if n.shape == shape and n.scale < 1e4 * unit * 1e4]
        if residuals and self.flip():
            real = self.emit(relax.op.add(real, self.pick(*residuals).real))
        activation = self.pick("none", "relu", "relu6")
        if activation == "relu":
            real = relax.op.nn.relu(real)
        elif activation == "relu6":
            real = relax.op.clip(real, 0, 6)
        return self.quantized(real, near=unit * 60 * taps**0.5)

    def step(self) -> None:
        images = [n for n in self.nodes if len(n.shape) == 4 and np.prod(n.shape) <= 2500]
        vectors = [n for n in self.nodes if len(n.shape) == 2]
        x = self.pick(*images[-2:], *vectors[-2:])
        names = IMAGE_OPERATORS if len(x.shape) == 4 else VECTOR_OPERATORS
        getattr(self, "_" + self.pick(*names).replace(" ", "_"))(x)

    def _conv(self, x: Node) -> None:
        c, h, w = x.shape[1:]
        groups = self.pick(*[g for g in (1, 1, 2, 3) if c % g == 0])
        out = groups * self.pick(1, 3, 8, 11, 16)
        kernel = [self.pick(*[k for k in (1, 2, 3, 5) if k <= d + 2]) for d in (h, w)]
        pads = [self.pick(0, 1, 2) for _ in range(4)]
        pads = [max(p, 1) if k > 2 else p for p, k in zip(pads, kernel * 2, strict=True)]
        if h + pads[0] + pads[2] < kernel[0] or w + pads[1] + pads[3] < kernel[1]:
            kernel = [1, 1]
        weight, scales = self.weight((out, c // groups, *kernel))
        real = relax.op.nn.conv2d(x.real, weight, strides=[self.pick(1, 2)] * 2, padding=pads, groups=groups)
        self.layer(x, real, scales, (1, 1), c // groups * kernel[0] * kernel[1])

    def _depthwise(self, x: Node) -> None:
        c = x.shape[1]
        weight, scales = self.weight((c * self.pick(1, 1, 2), 1, 3, 3))
        real = relax.op.nn.conv2d(
            x.real, weight, strides=[self.pick(1, 2)] * 2, padding=[1, 1, 1, 1], groups=c
        )
        self.layer(x, real, scales, (1, 1), 9)

    def _linear(self, x: Node) -> None:
        weight, scales = self.weight((self.pick(1, 5, 16, 33), x.shape[1]))
        real = relax.op.matmul(x.real, self.emit(relax.op.permute_dims(weight, [1, 0])))
        self.layer(x, real, scales, (), x.shape[1])

    def _partner(self, x: Node) -> Node:
        others = [n for n in self.nodes if n.shape == x.shape and n is not x]
        if not others:
            others = [self.quantized(relax.op.negative(self.emit(x.real)), near=x.scale)]
        return self.pick(*others)

    def _add(self, x: Node) -> None:
        y = self._partner(x)
        combine = self.pick(relax.op.add, relax.op.add, relax.op.subtract)
        self.quantized(combine(self.emit(x.real), self.emit(y.real)), near=max(x.scale, y.scale))

    def _mul(self, x: Node) -> None:
        y = self._partner(x)
        self.quantized(relax.op.multiply(self.emit(x.real), self.emit(y.real)), near=x.scale * y.scale * 100)

    def _concat(self, x: Node) -> None:
        y = self._partner(x)
        joined = relax.op.concat([self.emit(x.real), self.emit(y.real)], axis=self.pick(1, 1, 0, -1))
        if int(np.prod(x.shape)) <= 1000:
            self.quantized(joined, near=x.scale, same=self.pick(None, x))

    def _max_pool(self, x: Node) -> None:
        window = min(self.pick(2, 3), *x.shape[2:])
        pool = relax.op.nn.max_pool2d(
            self.emit(x.real), pool_size=[window] * 2, strides=[self.pick(1, 2)] * 2, padding=[window // 2] * 4,
            ceil_mode=self.flip(),
        )  # fmt: skip
        self.quantized(pool, near=x.scale, same=self.pick(x, x, None))

    def _avg_pool(self, x: Node) -> None:
        window = min(self.pick(2, 3), *x.shape[2:])
        pad = self.pick(0, window // 2)
        pool = relax.op.nn.avg_pool2d(
            self.emit(x.real), pool_size=[window] * 2, strides=[self.pick(1, 2)] * 2, padding=[pad] * 4,
            ceil_mode=self.flip(), count_include_pad=self.flip(),
        )  # fmt: skip
        self.quantized(pool, near=x.scale)

    def _mean(self, x: Node) -> None:
        keep = self.flip()
        self.quantized(relax.op.mean(self.emit(x.real), axis=[2, 3], keepdims=keep), near=x.scale)

    def _unary(self, x: Node) -> None:
        name = self.pick(*UNARY)
        near = 1 / 128 if name in ("sigmoid", "tanh", "hard tanh") else x.scale
        self.quantized(UNARY[name](self.emit(x.real)), near=self.pick(near, near, None))

    def _upsample(self, x: Node) -> None:
        size = (x.shape[2] * 2, x.shape[3] * self.pick(1, 2, 3))
        if x.shape[1] * size[0] * size[1] <= 2500:
            resized = relax.op.image.resize2d(
                self.emit(x.real), size=size, layout="NCHW", method="nearest_neighbor",
                coordinate_transformation_mode="asymmetric", rounding_method="floor",
            )  # fmt: skip
            self.quantized(resized, same=x)

    def _pad(self, x: Node) -> None:
        widths = [0, 0, 0, 0, *(self.pick(0, 1, 2) for _ in range(4))]
        self.quantized(relax.op.nn.pad(self.emit(x.real), widths, "constant", 0.0), same=x)

    def _slice(self, x: Node) -> None:
        axis = self.pick(*range(1, len(x.shape)))
        extent = x.shape[axis]
        begin = self.pick(*range(extent))
        end = self.pick(*range(begin + 1, extent + 1))
        cut = relax.op.strided_slice(self.emit(x.real), axes=[axis], begin=[begin], end=[end])
        self.quantized(cut, near=x.scale, same=self.pick(x, x, None))

    def _flatten(self, x: Node) -> None:
        self.quantized(relax.op.reshape(self.emit(x.real), (x.shape[0], int(np.prod(x.shape[1:])))), same=x)


def graph(seed: int, steps: int) -> tuple[tvm.IRModule, tuple[int, ...], float]:
    """Module with quantize and dequantize nodes, its input's shape and scale."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(rng.choice(c)) for c in ([1, 1, 2], [1, 3, 6, 16], range(3, 10), range(3, 10)))
    scale = float(np.float32(rng.choice(SCALES)))
    zero = int(rng.choice(ZERO_POINTS))

    def body(emit: Emit, x: relax.Var) -> tuple[relax.Expr, ...]:
        made = Graph(seed, emit)
        made.nodes.append(Node(emit(q(x, scale, zero)), shape, scale, zero))
        for _ in range(steps):
            made.step()
        # Every tensor comes out, so that none hides behind a later one that saturates; the last one as reals too.
        return (*(node.var for node in made.nodes), emit(made.nodes[-1].real))

    return make(body, (shape, "float32")), shape, scale


def inputs(shape: tuple[int, ...], scale: float) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(0)
    ties = (rng.integers(-300, 300, shape) / 2 * scale).astype(np.float32)
    extreme = np.where(rng.random(shape) < 0.5, -np.inf, 3.0e38).astype(np.float32)
    return [
        [(rng.normal(size=shape) * 60 * scale).astype(np.float32)],
        [(rng.uniform(-256, 256, shape) * scale).astype(np.float32)],
        [ties],
        [extreme],
        [np.zeros(shape, np.float32)],
    ]


def check(seed: int, steps: int, target: str = "native") -> None:
    module, shape, scale = graph(seed, steps)
    integer = pipeline.to_integer(module, pipeline.Dump(None))
    strangers = [
        op_name(b.value)
        for b in bindings(integer.module)
        if isinstance(b.value, relax.Call)
        and op_name(b.value) not in INTEGER_OPERATORS
        and not (op_name(b.value) in MOVEMENT and dtype(b.value) == "uint8")
    ]
    assert not strangers, f"stayed in float: {strangers} {integer.notes}"
    data = inputs(shape, scale)
    expected = reference(integer.module, data)
    actual = run(build(integer.module, registry.resolve(target)), data)
    for sample, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(
                a, b, err_msg=f"sample {sample}\n{integer.module.script(show_meta=False)}"
            )


SEEDS = st.integers(0, 2**32 - 1)
STEPS = st.integers(3, 8)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(SEEDS, STEPS)
def test_compiled_graphs_equal_the_interpreter(seed: int, steps: int) -> None:
    check(seed, steps)


@pytest.mark.parametrize("target", ["x86-avx512", "x86-avx2", *ARM_TARGETS])
@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@given(SEEDS, STEPS)
def test_graphs_compiled_for_other_chips(target: str, seed: int, steps: int) -> None:
    if not runs_here(registry.resolve(target)):
        pytest.skip(why_not_emulated() or f"this CPU lacks features of {target}")
    check(seed, steps, target)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(SEEDS, STEPS)
def test_many_compiled_graphs_equal_the_interpreter(seed: int, steps: int) -> None:
    check(seed, steps)
