"""The comparison on a GPU: the order of its measurements, its table, and what it says where there is none."""

from __future__ import annotations

from pathlib import Path

import gpu
import pytest

from qcompiler.errors import GpuError, QCompilerError
from qcompiler.runtime.gpu import Gpu


def test_without_a_gpu_it_says_so_and_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_gpu() -> Gpu:
        raise GpuError("no NVIDIA driver")

    monkeypatch.setattr(gpu, "first_gpu", no_gpu)
    assert gpu.main(["--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "nothing was measured: no NVIDIA driver\n"
    assert not (tmp_path / "out").exists()


def test_a_gpu_without_a_target_is_refused() -> None:
    assert gpu.target_of(Gpu(90, 132, 1.98e9)).name == "cuda-sm90"
    with pytest.raises(QCompilerError, match=r"compute capability 12.0; there are cuda-sm75, "):
        gpu.target_of(Gpu(120, 170, 2.4e9))


def test_engines_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []
    engines = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}

    def time(run: gpu.Run) -> float:
        run()
        return float(len(order))

    assert gpu.alternate(engines, time, 2) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert order == ["a", "b"] * 3


def test_the_table_has_medians_and_ratios() -> None:
    records = gpu.records_of("resnet50", 8, {gpu.OWN: [3.0, 1.0, 2.0], gpu.PEER: [5.0, 3.0, 4.0]}, exact=True)
    assert records[0] == {
        "what": "resnet50", "batch": 8, "engine": gpu.OWN, "median": 2.0, "least": 1.0, "most": 3.0, "exact": True,
    }  # fmt: skip
    about = {"gpu": "a GPU", "torch": "2", "qcompiler": "1", "rounds": 3, "runs": 20}
    text = gpu.table(about, records)
    assert text.splitlines()[0].startswith(
        "a GPU, PyTorch 2, qcompiler 1; milliseconds, medians of 3 alternating"
    )
    assert text.splitlines()[-1] == "| resnet50 | 8 | 2.000 | PyTorch float16 | 4.000 | 2.00 |"
