"""Plan files: what they say, what is refused, and that quantization follows them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_networks import Calls, quantized
from torch import nn

from qcompiler.config import CompileConfig
from qcompiler.errors import ConfigError
from qcompiler.quantization.plan import Plan


def residual() -> Calls:
    """A convolution, one with a sum and a relu in its epilogue, a gate, a pool and a linear layer."""

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.first(x))
        z = F.relu(m.second(y) + y)
        z = F.max_pool2d(z * torch.sigmoid(m.gate(z)), 2)
        return m.fc(F.adaptive_avg_pool2d(z, 1).flatten(1))

    return Calls(
        forward, first=nn.Conv2d(3, 4, 3), second=nn.Conv2d(4, 4, 3, padding=1), gate=nn.Conv2d(4, 4, 1),
        fc=nn.Linear(4, 3),
    )  # fmt: skip


def config(plan: Plan, folder: Path) -> CompileConfig:
    plan.save(folder / "plan.json")
    return CompileConfig(plan=folder / "plan.json")


def test_text_and_back() -> None:
    plan = Plan({"a.b": "fp32", "c": "int8"}, "fp32", {"a.b": "outliers"}, {"why": [1, None]})
    assert Plan.from_json(plan.to_json()) == plan
    assert (plan.precision("c"), plan.precision("other")) == ("int8", "fp32")


def test_a_short_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"format_version": 1, "layers": {"a": "fp32"}}')
    assert Plan.load(tmp_path / "p.json") == Plan({"a": "fp32"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "plan: not JSON"),
        ("[]", "must be an object"),
        ('{"layers": {}}', "format_version is None"),
        ('{"format_version": 2, "layers": {}}', "format_version is 2; this qcompiler reads 1"),
        ('{"format_version": 1}', "layers must be an object"),
        ('{"format_version": 1, "layers": {}, "notes": 3}', "notes must be an object"),
        ('{"format_version": 1, "layers": {}, "layer": {}}', "unknown field 'layer'; known: "),
        ('{"format_version": 1, "layers": {"a": "int4"}}', "precision of a is 'int4'; allowed: int8, fp32"),
        ('{"format_version": 1, "layers": {"a": ["int8"]}}', "precision of a is"),
        ('{"format_version": 1, "layers": {}, "default": "f"}', "precision of default is 'f'"),
        ('{"format_version": 1, "layers": {}, "reasons": {"a": 1}}', "reason of a is 1; it must be a text"),
        ('{"format_version": 1, "layers": {"a": "int8", "a": "fp32"}}', "'a' stands there twice"),
    ],
)
def test_faults_of_a_file(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan.from_json(text)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        Plan({}).save(tmp_path / "file" / "plan.json")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_unknown_layer_is_an_error_with_near_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no layer 'secnd'; near: second"):
        quantized(residual(), config(Plan({"secnd": "fp32"}), tmp_path))


def test_a_float_layer_is_float_with_its_epilogue(tmp_path: Path) -> None:
    result = quantized(residual(), config(Plan({"second": "fp32"}), tmp_path))
    planned = [(f.operator, f.reason) for f in result.float_operators]
    assert planned == [("conv2d", "plan: fp32"), ("add", "plan: fp32"), ("relu", "plan: fp32")]


def test_a_reason_is_what_the_report_says(tmp_path: Path) -> None:
    plan = Plan({"gate": "fp32"}, reasons={"gate": "faster so"})
    assert quantized(residual(), config(plan, tmp_path)).float_operators[0].reason == "faster so"


def test_a_plan_of_int8_is_no_plan(tmp_path: Path) -> None:
    (plain, planned) = (quantized(residual()), quantized(residual(), config(Plan({}), tmp_path)))
    assert [str(n.target) for n in planned.nodes] == [str(n.target) for n in plain.nodes]
    assert planned.float_operators == []


def test_default_float_and_one_layer_int8(tmp_path: Path) -> None:
    result = quantized(residual(), config(Plan({"gate": "int8"}, "fp32"), tmp_path))
    kept = [f.operator for f in result.float_operators]
    assert kept.count("conv2d") == 2
    weights = [n.args[1].op == "placeholder" for n in result.named("conv2d")]
    assert weights == [True, True, False]  # the gate's weights come out of a dequantize node


def test_keep_float_comes_before_the_plan(tmp_path: Path) -> None:
    Plan({"gate": "int8"}).save(tmp_path / "plan.json")
    both = CompileConfig(plan=tmp_path / "plan.json", keep_float=("gate",))
    first = quantized(residual(), both).float_operators[0]
    assert (first.operator, first.reason) == ("conv2d", "keep_float")
