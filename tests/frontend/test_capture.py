"""Capture of modules, archives and entry points, and the programs that are refused."""

from __future__ import annotations

import logging
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export
from torchao.quantization.pt2e.observer import MinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from qcompiler.errors import FrontendError
from qcompiler.frontend.capture import (
    TensorInfo,
    capture,
    check,
    is_quantized,
    load_entry_point,
    load_exported,
    resolve,
    user_inputs,
    user_outputs,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.drop(self.relu(self.bn(self.conv(image))))


IMAGE = (torch.randn(2, 3, 8, 8),)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt2"
    torch.export.save(export(Net().eval(), IMAGE), path)
    return path


def test_capture_names_inputs_and_outputs() -> None:
    program = capture(Net().eval(), IMAGE)
    assert user_inputs(program) == [TensorInfo("image", (2, 3, 8, 8), torch.float32)]
    assert user_outputs(program) == [TensorInfo("output", (2, 4, 6, 6), torch.float32)]
    assert not is_quantized(program)


def test_capture_in_training_mode_exports_inference_and_restores_every_mode(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = Net().train()
    net.bn.eval()
    before = {name: module.training for name, module in net.named_modules()}
    with caplog.at_level(logging.WARNING):
        program = capture(net, IMAGE)
    assert "Net is in training mode" in caplog.text
    assert {name: module.training for name, module in net.named_modules()} == before
    torch.testing.assert_close(program.module()(*IMAGE), net.eval()(*IMAGE))


def test_capture_restores_modes_after_a_failure() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no such\nthing")

    net = Fails().train()
    with pytest.raises(FrontendError, match=r"Fails cannot be exported by PyTorch: ValueError: no such$"):
        capture(net, IMAGE)
    assert net.training


def test_capture_takes_the_module_of_an_exported_program() -> None:
    again = capture(capture(Net().eval(), IMAGE).module(), IMAGE)
    assert [info.name for info in user_inputs(again)] == ["image"]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (torch.zeros(1), "example_inputs is a Tensor; give a tuple"),
        ((), "example_inputs is empty"),
        ((torch.zeros(1), 3), "example input 1 is a int; all must be tensors"),
        ((torch.zeros(1), None), "example input 1 is a NoneType"),
        ({"x": torch.zeros(1)}, "example_inputs is a dict"),
    ],
)
def test_capture_refuses_what_is_no_tuple_of_tensors(examples: object, message: str) -> None:
    with pytest.raises(FrontendError, match=message):
        capture(Net().eval(), examples)  # type: ignore[arg-type]


def test_capture_refuses_what_is_no_module() -> None:
    with pytest.raises(FrontendError, match=r"the model is a function; it must be a torch.nn.Module"):
        capture(lambda x: x, IMAGE)  # type: ignore[arg-type]


def test_names_keep_their_case_and_outputs_their_keys() -> None:
    class Model(nn.Module):
        def forward(self, inputImage: torch.Tensor, p_mask: torch.Tensor) -> dict[str, object]:
            return {"Logits": inputImage + 1, "aux": [inputImage * p_mask, None]}

    program = capture(Model(), (torch.zeros(2, 3), torch.zeros(3)))
    assert [(i.name, i.shape) for i in user_inputs(program)] == [("inputImage", (2, 3)), ("p_mask", (3,))]
    assert [info.name for info in user_outputs(program)] == ["Logits", "aux_0"]


def test_several_outputs_are_numbered() -> None:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x + 1, x.argmax(1), x

    outputs = user_outputs(capture(Model(), (torch.zeros(2, 3),)))
    assert [(o.name, o.shape, o.dtype) for o in outputs] == [
        ("output_0", (2, 3), torch.float32),
        ("output_1", (2,), torch.int64),
        ("output_2", (2, 3), torch.float32),
    ]


class WritesBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.view(-1)[:1].add_(1)
        return x + self.seen


class WritesInput(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1).relu_() + 1


class WritesSlice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.chunk(3, 1)[1].zero_()
        return x + 1


class WritesOwn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[:, 0] += 1
        return (x + y).relu_().add_(1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WritesBuffer(), r"writes to its buffer 'seen' in forward \(aten.add_.Tensor at add_\)"),
        (WritesInput(), "writes to its input 'x'"),
        (WritesSlice(), "writes to its input 'x'"),
    ],
    ids=["buffer", "input", "slice"],
)
def test_state_is_refused_before_and_after_functionalization(model: nn.Module, message: str) -> None:
    with pytest.raises(FrontendError, match=message):
        capture(model, (torch.zeros(2, 3),))
    functional = export(model, (torch.zeros(2, 3),)).run_decompositions({})
    with pytest.raises(FrontendError, match=r"writes to '(seen|x)'"):
        check(functional)


def test_writes_to_own_tensors_are_no_state() -> None:
    assert is_quantized(capture(WritesOwn(), (torch.zeros(2, 3),))) is False


@pytest.mark.parametrize("parts", [("bn",), ("drop",)])
def test_programs_exported_in_training_mode_are_refused(parts: tuple[str, ...]) -> None:
    net = Net().eval()
    for part in parts:
        getattr(net, part).train()
    with pytest.raises(
        FrontendError, match=rf"exported in training mode: aten.* at {parts[0]} trains; call model"
    ):
        check(export(net, IMAGE))


def test_batch_norm_without_running_statistics_is_no_training() -> None:
    capture(nn.BatchNorm2d(3, track_running_stats=False).eval(), IMAGE)


def test_dynamic_shapes_are_refused_by_the_inputs_name() -> None:
    program = export(Net().eval(), IMAGE, dynamic_shapes=({0: Dim("batch", min=2, max=16)},))
    with pytest.raises(
        FrontendError, match=r"input 'image' has a dynamic shape \['.*', '3', '8', '8'\] \(axis 0"
    ):
        check(program)


class Apply(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.function = function

    def forward(self, x: torch.Tensor) -> object:
        return self.function(self.linear(x))


@pytest.mark.parametrize("function", [lambda x: x[x > 0], lambda x: x + x.nonzero().sum()])
def test_shapes_that_depend_on_values_are_refused(function: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(
        FrontendError, match=r"the shape of aten\.\w+\.\w+ at \w+ depends on the input's values"
    ):
        capture(Apply(function).eval(), (torch.zeros(2, 3),))


def test_outputs_without_a_tensor_are_refused() -> None:
    with pytest.raises(FrontendError, match="forward returns no tensor"):
        capture(Apply(lambda x: 3).eval(), (torch.zeros(2, 3),))


def test_weights_and_inputs_on_other_devices_are_refused() -> None:
    example = torch.zeros(2, 3, device="meta")
    with pytest.raises(FrontendError, match=r"'linear\.weight' is on device meta.* call model\.cpu\(\)"):
        capture(Apply(lambda x: x).eval().to("meta"), (example,))
    with pytest.raises(FrontendError, match="input 'input' is on device meta"):
        capture(nn.ReLU().eval(), (example,))


class Loose(nn.Module):
    def forward(self, x: torch.Tensor, scale: object = 2, mask: object = None) -> torch.Tensor:
        extra = scale[0] if isinstance(scale, tuple | list) else scale
        return x * extra


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((IMAGE[0], 3), {}, r"input 'scale' \(3\) is no tensor"),
        ((IMAGE[0], 3, None), {}, r"input 'scale' \(3\) is no tensor"),
        ((IMAGE[0], IMAGE[0], None), {}, r"input 'mask' \(None\) is no tensor"),
        ((IMAGE[0], (IMAGE[0],)), {}, "argument 1 of forward is a tuple"),
        (IMAGE, {"scale": IMAGE[0]}, "input 'scale' is passed by keyword"),
    ],
)
def test_inputs_that_are_no_positional_tensors_are_refused(
    args: tuple[object, ...], kwargs: dict[str, object], message: str
) -> None:
    with pytest.raises(FrontendError, match=message):
        check(export(Loose(), args, kwargs))


def test_an_archive_is_loaded(archive: Path) -> None:
    program = load_exported(archive)
    assert [info.name for info in user_inputs(program)] == ["image"]
    assert isinstance(resolve(str(archive)), ExportedProgram)


class Explodes:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a file that is no .pt2 archive was unpickled",))


def test_files_that_are_no_archives_are_refused_and_not_unpickled(tmp_path: Path) -> None:
    plain = tmp_path / "plain.pt2"
    plain.write_bytes(pickle.dumps(Explodes()))
    with pytest.raises(FrontendError, match=r"plain.pt2 is no .pt2 archive \(it is no complete zip file\)"):
        load_exported(plain)
    checkpoint = tmp_path / "checkpoint.pt2"
    torch.save(Explodes(), checkpoint)
    with pytest.raises(FrontendError, match=r"no .pt2 archive \(the zip file holds no exported program\)"):
        load_exported(checkpoint)


def test_a_missing_archive_a_folder_and_a_cut_archive_are_refused(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(FrontendError, match=r"gone.pt2 is missing"):
        resolve(str(tmp_path / "gone.pt2"))
    with pytest.raises(FrontendError, match=r"is a folder; give a .pt2 archive"):
        resolve(str(tmp_path))
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(FrontendError, match=r"cut.pt2 is no .pt2 archive"):
        load_exported(cut)


@pytest.mark.parametrize("content", [b"{}", b"not json", b'{"graph_module": 3}'])
def test_a_damaged_archive_is_one_line_without_a_traceback(
    tmp_path: Path, archive: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "damaged.pt2"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(damaged, "w") as target:
        for name in source.namelist():
            target.writestr(name, content if name.endswith("models/model.json") else source.read(name))
    with pytest.raises(FrontendError, match=r"damaged.pt2 cannot be loaded by PyTorch .*: \w+") as caught:
        load_exported(damaged)
    assert "\n" not in str(caught.value)
    assert not [record for record in caplog.records if record.exc_info]


def test_archives_are_checked_like_modules(tmp_path: Path) -> None:
    path = tmp_path / "stateful.pt2"
    torch.export.save(export(WritesBuffer(), (torch.zeros(2, 3),)), path)
    with pytest.raises(FrontendError, match="writes to its buffer 'seen'"):
        load_exported(path)


ENTRY_POINTS = """
import torch
from torch import nn

LIMIT = 3

def build():
    return nn.Linear(4, 2), (torch.zeros(1, 4),)

def single():
    return nn.Linear(4, 2), torch.zeros(1, 4)

def wrong():
    return nn.Linear(4, 2)

def swapped():
    return (torch.zeros(1, 4),), nn.Linear(4, 2)

def fails():
    raise KeyError("weights")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package in the current folder, by a name that no other test uses."""
    name = f"entry_points_{tmp_path.name}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "models.py").write_text(ENTRY_POINTS)
    (folder / "needy.py").write_text("import no_such_package_at_all\n")
    (folder / "broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("function", ["build", "single"])
def test_an_entry_point_is_called_and_the_path_restored(package: str, function: str) -> None:
    before = list(sys.path)
    program = resolve(f"{package}.models:{function}")
    assert [(i.name, i.shape) for i in user_inputs(program)] == [("input", (1, 4))]
    assert sys.path == before


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (".models:gone", "has no 'gone'"),
        (".models:LIMIT", "has no callable 'LIMIT'"),
        (".models:wrong", r"wrong\(\) returned Linear; it must return"),
        (".models:swapped", r"swapped\(\) returned \(tuple, Linear\)"),
        (".models:fails", r"fails\(\) failed: KeyError: 'weights'"),
        (".gone:build", r"there is no module '\w+\.gone'"),
        (".needy:build", "importing .* failed: No module named 'no_such_package_at_all'"),
        (".broken:build", "importing .* failed: ZeroDivisionError: division by zero"),
    ],
)
def test_faulty_entry_points_say_what_is_wrong(package: str, rest: str, message: str) -> None:
    with pytest.raises(FrontendError, match=message):
        load_entry_point(package + rest)


@pytest.mark.parametrize(
    "source", ["model", "a:b:c", "model.tflite", ":f", "m:", "dir/file.py:build", "", "m" * 5000]
)
def test_sources_that_are_nothing_known_are_refused(source: str) -> None:
    with pytest.raises(FrontendError, match="is no existing file and no entry point"):
        resolve(source)
    with pytest.raises(FrontendError, match="is malformed"):
        load_entry_point(source)


class QuantizesLinear(Quantizer):
    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        spec = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
        for node in model.graph.nodes:
            if node.target is torch.ops.aten.linear.default:
                node.meta["quantization_annotation"] = QuantizationAnnotation({node.args[0]: spec}, spec)
        return model

    def validate(self, model: torch.fx.GraphModule) -> None:
        pass


def test_a_quantized_program_is_known_as_such_also_from_a_file(tmp_path: Path) -> None:
    example = (torch.randn(2, 4),)
    prepared = prepare_pt2e(export(nn.Linear(4, 2).eval(), example).module(), QuantizesLinear())
    prepared(*example)
    program = export(convert_pt2e(prepared), example)
    assert is_quantized(program)
    path = tmp_path / "quantized.pt2"
    torch.export.save(program, path)
    loaded = load_exported(path)
    assert is_quantized(loaded)
    assert [info.name for info in user_inputs(loaded)] == ["input"]
    assert [info.name for info in user_outputs(loaded)] == ["output"]
