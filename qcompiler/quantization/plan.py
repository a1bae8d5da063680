"""Precision plans: which layers are computed in integers and which in float; a JSON file that a person can edit.

::

    {
      "format_version": 1,
      "default": "int8",
      "layers": {"conv1": "fp32", "layer1.0.conv1": "int8"},
      "reasons": {"conv1": "its input has outliers"},
      "notes": {}
    }

``reasons`` are what a manifest says of layers in float. ``notes`` is for people and other programs; the compiler does not read it.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from qcompiler.config import Precision
from qcompiler.errors import ConfigError

FORMAT_VERSION = 1
"""Version of the file's format; a reader refuses every other one."""

_KNOWN: tuple[str, ...] = get_args(Precision)

_FIELDS = ("format_version", "default", "layers", "reasons", "notes")


@dataclass(frozen=True)
class Plan:
    """A precision for every layer.

    Attributes:
        layers: precisions by name of the layer, such as ``layer1.0.conv1``.
        default: precision of the layers that ``layers`` does not name.
        reasons: why layers are in float, by name.
        notes: anything that JSON holds, for people.
    """

    layers: Mapping[str, Precision]
    default: Precision = "int8"
    reasons: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for where, value in (("default", self.default), *(self.layers.items())):
            if value not in _KNOWN:
                raise ConfigError(f"plan: precision of {where} is {value!r}; allowed: {', '.join(_KNOWN)}")

        for name, reason in self.reasons.items():
            if not isinstance(reason, str):
                raise ConfigError(f"plan: the reason of {name} is {reason!r:.80}; it must be a text")

    @property
    def precisions(self) -> frozenset[Precision]:
        """All that the plan has."""
        return frozenset((self.default, *self.layers.values()))

    def precision(self, layer: str) -> Precision:
        return self.layers.get(layer, self.default)

    def reason(self, layer: str) -> str:
        """Why a layer is in float."""
        return self.reasons.get(layer, f"plan: {self.precision(layer)}")

    def to_json(self) -> str:
        """The text of the file; equal plans give equal texts."""
        data = {
            "format_version": FORMAT_VERSION,
            "default": self.default,
            "layers": dict(self.layers),
            "reasons": dict(self.reasons),
            "notes": dict(self.notes),
        }
        return json.dumps(data, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "plan") -> Plan:
        """Reads the text of a plan.

        Args:
            text: JSON.
            source: what to call it in errors.

        Raises:
            ConfigError: it is no JSON, of another format version, or a field is missing, unknown or ill-typed.
        """
        try:
            data = json.loads(text, object_pairs_hook=_unique(source))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{source}: not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{source}: must be an object with {', '.join(_FIELDS)}")
        unknown = sorted(data.keys() - set(_FIELDS))
        if unknown:
            raise ConfigError(f"{source}: unknown field {unknown[0]!r}; known: {', '.join(_FIELDS)}")
        if data.get("format_version") != FORMAT_VERSION:
            raise ConfigError(
                f"{source}: format_version is {data.get('format_version')!r}; this qcompiler reads {FORMAT_VERSION}"
            )
        objects = {
            "layers": data.get("layers"), "reasons": data.get("reasons", {}), "notes": data.get("notes", {}),
        }  # fmt: skip
        for name, value in objects.items():
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: {name} must be an object, and is {value!r:.80}")
        try:
            return cls(default=data.get("default", "int8"), **objects)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Reads a file.

        Raises:
            ConfigError: it cannot be read, or :meth:`from_json` refuses it.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"plan {path} cannot be read: {error}; 'qcompile search' writes one") from error
        return cls.from_json(text, f"plan {path}")

    def save(self, path: Path) -> None:
        """Writes a file, in one step: a reader sees the former one or the whole new one.

        Raises:
            ConfigError: it cannot be written.
        """
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_text(self.to_json(), encoding="utf-8")
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"plan {path} cannot be written: {error}") from error

    def check(self, known: Mapping[str, Any]) -> None:
        """Refuses names that are no layers of the model.

        Args:
            known: the model's layers by name.

        Raises:
            ConfigError: a name is unknown; the message names near ones.
        """
        for name in (*self.layers, *self.reasons):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=5, cutoff=0.4) or list(known)[:5]
                raise ConfigError(
                    f"plan: the model has no layer {name!r}; near: {', '.join(near) or 'it has none at all'}; "
                    "'qcompile search' writes a plan with every layer"
                )


def _unique(source: str) -> Any:
    """Refuses an object that has a name twice: JSON's reader would keep the last and say nothing."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in items:
            if name in result:
                raise ConfigError(f"{source}: {name!r} stands there twice")
            result[name] = value
        return result

    return pairs
