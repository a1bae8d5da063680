"""New nodes in the place of one that is respelled."""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import GraphModule, Node

from qcompiler.quantization.operator_classes import ORIGIN, operator_name


class Emitter:
    """Adds calls in the place of a node: with its module path, its line, and its name in reports."""

    def __init__(self, model: GraphModule, origin: Node) -> None:
        self.graph = model.graph
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
