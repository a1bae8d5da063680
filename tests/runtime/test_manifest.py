"""The manifest survives JSON, and refuses what is not one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qcompiler.errors import BundleError
from qcompiler.runtime.manifest import (
    FloatRecord,
    LayerRecord,
    Manifest,
    TargetNeeds,
    TensorSpec,
    Versions,
)

MANIFEST = Manifest(
    inputs=(TensorSpec("x", (1, 3, 8, 8), "float32", 0.1, 128),),
    outputs=(TensorSpec("y", (1, 10), "float32"), TensorSpec("scalar", (), "int64")),
    target={"name": "x86-avx2", "family": "x86", "required_features": ["avx2"], "l1_bytes": 32768},
    versions=Versions("0.1.0", "0.27.0", "0.1.14", "2.13.0", "3.11.7"),
    layers=(
        LayerRecord("conv", "qc.conv2d", "int8", (1, 8, 8, 16), 27648, 10**6, "vpdpbusd", 12, None, "conv2d"),
        LayerRecord("fc", "qc.dense", "int8", (1, 10), reason="K=3 is too short"),
    ),
    float_operators=(FloatRecord("softmax", "head", "has no integer kernel"),),
    alternatives=(TargetNeeds("x86-avx2", ("avx2",)),),
    files={"model.so": "0" * 64},
)


def changed(*path: str | int, value: Any) -> str:
    data = json.loads(MANIFEST.to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(data)


def test_json_round_trip() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_equal_manifests_give_equal_text_whatever_the_order_of_sets() -> None:
    texts = set()
    for names in (("a", "b", "c"), ("c", "b", "a")):
        target = {**MANIFEST.target, "rules": {"operators": frozenset(names), "range": (0, 255)}}
        texts.add(Manifest((), (), target, MANIFEST.versions).to_json())
    (text,) = texts
    assert json.loads(text)["target"]["rules"] == {"operators": ["a", "b", "c"], "range": [0, 255]}


def test_whole_number_is_read_as_scale() -> None:
    read = Manifest.from_json(changed("inputs", 0, "scale", value=2))
    assert isinstance(read.inputs[0].scale, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a manifest"),
        ("{}", "not a manifest"),
        (changed("format_version", value=99), "format 99; this qcompiler reads format 4"),
        (changed("surprise", value=1), "unknown field 'surprise'"),
        (changed("inputs", value=None), "manifest.inputs must be a list"),
        (changed("inputs", 0, value={"name": "x"}), r"manifest.inputs\[0\]: field 'dtype' is missing"),
        (
            changed("inputs", 0, "shape", value=[1, "3"]),
            r"manifest.inputs\[0\].shape\[1\] must be of type int",
        ),
        (changed("layers", 0, "macs", value=True), r"manifest.layers\[0\].macs must be of type int"),
        (changed("layers", 0, "macs", value=-1), "macs -1"),
        (changed("inputs", 0, "dtype", value="float33"), "'float33', unknown to NumPy"),
        (changed("inputs", 0, "scale", value=-0.5), "scale -0.5"),
        (changed("inputs", 0, "scale", value=None), "one of scale and zero_point"),
        (changed("inputs", 0, "shape", value=[-1]), "negative extent"),
        (changed("outputs", 0, "name", value="scalar"), "outputs share a name"),
        (changed("target", value={"name": "n", "family": "x86"}), "required_features must be a list"),
        (changed("target", "name", value=3), "target.name must be a string"),
        (changed("files", "model.so", value="12"), "must be a SHA-256"),
    ],
)
def test_faulty_manifest_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(text)
