"""New nodes in the place of one that is respelled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import GraphModule, Node

from qcompiler.quantization.operator_classes import ORIGIN, operator_name


class Emitter:
    """Adds calls in the place of a node: with its module path, its line, and its name in reports."""

    def __init__(self, model: GraphModule, origin: Node) -> None:
        self.model, self.graph = model, model.graph
        self.fake_mode = origin.meta["val"].fake_mode
        self.meta = {**origin.meta, ORIGIN: operator_name(origin)}

    def __call__(self, target: Callable[..., object], *args: object, **kwargs: object) -> Node:
        node = self.graph.call_function(target, args, kwargs)  # type: ignore[arg-type]
        node.meta.update(self.meta)
        source = args[0]
        assert isinstance(source, Node), node
        with source.meta["val"].fake_mode:
            fakes = [a.meta["val"] if isinstance(a, Node) else a for a in args]
            node.meta["val"] = target(*fakes, **kwargs)
        return node

    def constant(self, name: str, value: torch.Tensor) -> Node:
        """A tensor of the model; of two of one name the first is taken for both."""
        if not hasattr(self.model, name):
            self.model.register_buffer(name, value)
        node = self.graph.get_attr(name)
        node.meta["val"] = self.fake_mode.from_tensor(value)
        return node
