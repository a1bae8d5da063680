"""Fake quantization is the quantize and dequantize of the compiled model, and finds its range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import QuantizationError
from qcompiler.quantization.observers import SMALLEST_SCALE, MSEObserver
from qcompiler.quantization.training.fake_quantize import AVERAGING, FakeQuantize

Q = torch.ops.quantized_decomposed


def fake(learned: bool = False) -> FakeQuantize:
    return FakeQuantize(learned=learned, observer=MSEObserver)


def with_parameters(scale: float, zero_point: int, learned: bool = False) -> FakeQuantize:
    module = fake(learned)
    with torch.no_grad():
        module.scale.fill_(scale)
        module.zero_point.fill_(zero_point)
        module.seen.fill_(True)
    return module


@settings(max_examples=100, deadline=None)
@given(
    scale=st.floats(2.0**-20, 2.0**10, width=32),
    zero_point=st.sampled_from([0, 1, 127, 128, 255]),
    learned=st.booleans(),
    halves=st.lists(st.integers(-600, 600), min_size=1, max_size=50),
)
def test_it_is_quantize_then_dequantize_in_every_bit(
    scale: float, zero_point: int, learned: bool, halves: list[int]
) -> None:
    x = torch.tensor(halves, dtype=torch.float32) * 0.5 * scale  # halves of steps are ties
    module = with_parameters(scale, zero_point, learned).eval()
    scale32 = float(module.scale.detach())
    q = Q.quantize_per_tensor(x, scale32, zero_point, 0, 255, torch.uint8)
    expected = Q.dequantize_per_tensor(q, scale32, zero_point, 0, 255, torch.uint8)
    with torch.no_grad():
        assert torch.equal(module(x), expected)


def test_the_gradient_passes_within_the_range_only() -> None:
    module = with_parameters(0.1, 128).eval()
    x = torch.tensor([-100.0, -12.0, 0.03, 12.0, 100.0], requires_grad=True)
    module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_a_range_follows_the_batches() -> None:
    module = fake().train()
    module(torch.tensor([-1.0, 3.0]))
    scale, zero_point = module.calculate_qparams()
    assert float(scale) == pytest.approx(4 / 255)
    assert int(zero_point) == 64
    module(torch.tensor([-2.0, 3.0]))
    assert float(module.low) == pytest.approx(-1.0 - AVERAGING)
    module.tracking = False
    module(torch.tensor([-9.0, 9.0]))
    assert float(module.low) == pytest.approx(-1.0 - AVERAGING)


def test_a_learned_scale_begins_with_the_first_batch_and_then_has_a_gradient() -> None:
    module = fake(learned=True).train()
    module(torch.tensor([[0.0, 2.55]]))
    assert float(module.scale.detach()) == pytest.approx(0.01)
    module(torch.tensor([[0.0, 1000.0]])).sum().backward()
    assert float(module.scale.detach()) == pytest.approx(0.01)
    # What is clipped asks for a larger scale: 255 steps, by LSQ's factor 1 / sqrt(values * 255).
    assert float(module.scale.grad) == pytest.approx(255 / (2 * 255) ** 0.5)


def test_a_scale_below_zero_is_used_as_its_magnitude() -> None:
    module = with_parameters(-0.5, 0, learned=True).eval()
    assert float(module.calculate_qparams()[0]) == 0.5
    assert float(with_parameters(0.0, 0, learned=True).calculate_qparams()[0]) == pytest.approx(
        SMALLEST_SCALE
    )


def test_calibration_gives_the_observer_s_own_parameters() -> None:
    module = fake()
    observer = MSEObserver()
    module.calibrating = True
    for seed in range(4):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(seed))
        observer(x)
        assert module(x) is x
    module.end_calibration()
    for own, wanted in zip(module.calculate_qparams(), observer.calculate_qparams(), strict=True):
        assert torch.equal(own, wanted)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(QuantizationError, match="a tensor takes values that are NaN or infinite in training"):
        fake().train()(torch.tensor([1.0, float("inf")]))
