"""Where quantize and dequantize stand: at the borders of what one integer kernel computes, nowhere else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_networks import Calls, is_dequantize, is_quantize, quantized, scale_in, scale_out
from torch import nn


def conv(inputs: int, outputs: int, kernel: int = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def test_residual_block_with_batch_norms_and_inplace_relu() -> None:
    def forward(m, x):
        x = m.relu(m.n1(m.c1(x)))
        y = m.n2(m.c2(x))
        y += x
        return m.fc(m.relu(y).mean((2, 3)))

    result = quantized(
        Calls(
            forward, c1=conv(3, 8, bias=False), n1=nn.BatchNorm2d(8), c2=conv(8, 8), n2=nn.BatchNorm2d(8),
            relu=nn.ReLU(inplace=True), fc=nn.Linear(8, 5),
        )
    )  # fmt: skip
    first, second = result.named("conv2d")
    assert [n.target for n in first.users] == [torch.ops.aten.relu.default]
    addition = result.only("add")
    assert [n for n in addition.all_input_nodes if not is_dequantize(n)] == [second]
    (clamp,) = addition.users
    assert clamp.target is torch.ops.aten.relu.default
    assert scale_out(clamp)[1] == 0
    (logits,) = result.named("linear")
    assert not any(is_quantize(user) for user in logits.users)
    assert result.float_operators == []
    assert result.sqnr() > 25


def test_weights_are_symmetric_int8_constants_with_a_scale_a_channel() -> None:
    result = quantized(Calls(lambda m, x: m.c2(F.relu(m.c1(x))), c1=conv(3, 8), c2=conv(8, 8, groups=8)))
    tensors = {k: v for k, v in result.program.state_dict.items() if v.dtype == torch.int8}
    assert sorted(tuple(t.shape) for t in tensors.values()) == [(8, 1, 3, 3), (8, 3, 3, 3)]
    for tensor in tensors.values():
        assert tensor.abs().amax(dim=(1, 2, 3)).tolist() == [127] * 8
    float_weights = [
        v for v in result.program.state_dict.values() if v.dtype == torch.float32 and v.dim() == 4
    ]
    assert float_weights == []


def test_later_convolution_takes_the_sum() -> None:
    result = quantized(
        Calls(lambda m, x: m.c3(F.relu(m.c2(x) + m.c1(x))), c1=conv(3, 8), c2=conv(3, 8), c3=conv(8, 4))
    )
    first, second, _ = result.named("conv2d")
    assert is_quantize(next(iter(first.users)))
    assert next(iter(second.users)).target is torch.ops.aten.add.Tensor


@pytest.mark.parametrize(
    ("clamp", "fused"),
    [
        (nn.ReLU6(inplace=True), True),
        (nn.Hardtanh(-1.0, 1.0), True),
        (lambda x: torch.clamp(x, max=4.0), True),
        (lambda x: torch.clamp(x, min=0.5), False),
        (nn.Hardswish(), False),
        (nn.LeakyReLU(), False),
        (lambda x: x * 0.5, False),
        (lambda x: 1.0 - x, False),
    ],
)
def test_only_clamps_around_zero_join_the_convolution(clamp, fused: bool) -> None:
    result = quantized(Calls(lambda m, x: m.c2(clamp(m.c1(x))), c1=conv(3, 4), c2=conv(4, 4)))
    first, _ = result.named("conv2d")
    (user,) = first.users
    assert is_quantize(user) != fused
    assert result.float_operators == []


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * F.relu6(x + 3) / 6,
        lambda x: x * torch.sigmoid(x),
        lambda x: F.hardswish(F.silu(x)),
        lambda x: x - torch.tanh(x) * 0.25,
    ],
)
def test_function_of_one_tensor_is_quantized_only_at_its_ends(function) -> None:
    result = quantized(Calls(lambda m, x: m.c2(function(m.c1(x))), c1=conv(3, 4), c2=conv(4, 4)))
    quantizes = [n for n in result.nodes if is_quantize(n)]
    assert len(quantizes) == 3  # the input, the function's input and its output
    assert result.float_operators == []
    assert result.sqnr() > 25


def test_intermediate_that_is_used_elsewhere_ends_a_region() -> None:
    def forward(m, x):
        y = F.silu(m.c1(x))
        return m.c3(torch.tanh(y)) + m.c2(y)

    result = quantized(Calls(forward, c1=conv(3, 4), c2=conv(4, 4), c3=conv(4, 4)))
    assert scale_out(result.only("silu")) == scale_in(result.only("tanh"))
    assert result.float_operators == []


def test_two_functions_of_a_shared_intermediate() -> None:
    def forward(m, x):
        y = m.c1(x) + 3.0
        return m.c2(F.relu6(y)) + m.c3(torch.tanh(y))

    result = quantized(Calls(forward, c1=conv(3, 4), c2=conv(4, 4), c3=conv(4, 4)))
    assert result.float_operators == []
    assert result.sqnr() > 25


def test_squeeze_and_excite() -> None:
    def forward(m, x):
        x = F.silu(m.c1(x))
        y = F.hardsigmoid(m.e(F.relu(m.s(F.adaptive_avg_pool2d(x, 1)))))
        return m.c2(x * y)

    result = quantized(Calls(forward, c1=conv(3, 8), s=conv(8, 4, 1), e=conv(4, 8, 1), c2=conv(8, 4)))
    product = result.only("mul")
    assert all(is_dequantize(n) for n in product.all_input_nodes)
    scale_out(product)
    assert result.float_operators == []
    assert result.sqnr() > 25


def test_sum_of_two_tensors_takes_a_clamp() -> None:
    def forward(m, x):
        x = F.relu(m.c1(x))
        return m.c2(F.relu(F.max_pool2d(x, 3, 1, 1) + F.avg_pool2d(x, 3, 1, 1)))

    result = quantized(Calls(forward, c1=conv(3, 4), c2=conv(4, 4)))
    (clamp,) = result.only("add").users
    assert clamp.target is torch.ops.aten.relu.default
    assert scale_out(clamp)[1] == 0


def test_what_moves_values_keeps_their_scale() -> None:
    def forward(m, x):
        x = F.max_pool2d(m.c1(x), 2)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        a, b = x.chunk(2, 1)
        a = F.pad(F.interpolate(a, scale_factor=2.0), (1, 0, 0, 1))
        return m.c2(a), m.c3(b[:, :, ::2].permute(0, 1, 3, 2))

    result = quantized(
        Calls(lambda m, x: sum(t.mean() for t in forward(m, x)), c1=conv(3, 8), c2=conv(4, 4), c3=conv(4, 4))
    )
    movement = ("max_pool2d", "view", "transpose", "clone", "upsample_nearest2d", "pad", "slice", "permute")
    moved = [n for name in movement for n in result.named(name)]
    assert len(moved) == 9
    scales = {scale_out(n) for n in moved} | {scale_in(n) for n in moved}
    assert len(scales) == 1
    (split,) = result.named("split")
    assert {scale_out(n) for n in split.users} == {scale_in(split)} == scales


def test_concatenation_gives_its_scale_to_results_that_only_it_uses() -> None:
    def forward(m, x):
        x = F.relu(m.c1(x))
        y = torch.cat([x, m.c2(x), F.relu(m.c3(x))], 1)
        return m.c4(y)

    result = quantized(Calls(forward, c1=conv(3, 4), c2=conv(4, 4), c3=conv(4, 4), c4=conv(12, 4)))
    cat = result.only("cat")
    own, second, third = ((n.args[1], n.args[2]) for n in cat.all_input_nodes)
    assert second == third == scale_out(cat)
    assert own != scale_out(cat)


def test_chained_concatenations_with_batch_norms() -> None:
    def forward(m, x):
        features = [m.c0(x)]
        for norm, layer in ((m.n1, m.c1), (m.n2, m.c2)):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return m.fc(F.relu(m.n3(torch.cat(features, 1))).mean((2, 3)))

    norms = {f"n{k}": nn.BatchNorm2d(4 + 4 * k) for k in (0, 1, 2)}
    result = quantized(
        Calls(
            forward, c0=conv(3, 4), n1=norms["n0"], c1=conv(4, 4), n2=norms["n1"], c2=conv(8, 4),
            n3=norms["n2"], fc=nn.Linear(12, 3),
        )
    )  # fmt: skip
    assert result.float_operators == []
    assert len(result.named("conv2d")) == 6
    assert result.sqnr() > 25


def test_float_tail_and_float_operators_are_named_with_their_place() -> None:
    result = quantized(
        Calls(lambda m, x: torch.softmax(m.fc(m.c(x).flatten(1)), 1), c=conv(3, 2), fc=nn.Linear(512, 4))
    )
    (record,) = result.float_operators
    assert record.operator == "softmax"
    assert "small_networks.py:" in record.place
    assert record.reason == "softmax has no integer kernel"
    (logits,) = result.named("linear")
    assert [n.target for n in logits.users] == [torch.ops.aten.softmax.int]


def test_operators_between_float_operators_stay_in_float() -> None:
    result = quantized(Calls(lambda m, x: m.c((x * 0.5 - 1.0).flip(3)), c=conv(3, 2)))
    assert [f.operator for f in result.float_operators] == ["mul", "sub", "flip"]
    assert sum(is_quantize(n) for n in result.nodes) == 1


def test_constant_operands_are_quantized_as_constants() -> None:
    module = Calls(lambda m, x: m.c2(m.c1(x) * m.gamma), c1=conv(3, 4), c2=conv(4, 4))
    module.gamma = nn.Parameter(torch.rand(1, 4, 1, 1))
    result = quantized(module)
    assert all(is_dequantize(n) for n in result.only("mul").all_input_nodes)
    assert result.float_operators == []


def test_pools_with_uneven_windows_are_refused_with_the_sizes() -> None:
    result = quantized(
        Calls(lambda m, x: m.c2(F.adaptive_avg_pool2d(m.c1(x), 5)), c1=conv(3, 4), c2=conv(4, 4))
    )
    (record,) = result.float_operators
    assert record.reason == "its windows from 16x16 to 5x5 differ in size"
