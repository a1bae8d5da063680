"""One spelling for operators that have several, so that quantization sees the fewest."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from qcompiler.quantization.operator_classes import argument, aten, shape_of

_COPIES = frozenset({aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default})


def canonicalize(model: GraphModule) -> None:
    """Remove copies, and give convolutions their padding in numbers, in place.

    Args:
        model: a graph of functional operators, so that a copy and its origin always have one value.
    """
    for node in list(model.graph.nodes):
        # A clone with a memory format may be what allows the view after it.
        if (node.target is aten.clone.default and not node.kwargs) or node.target in _COPIES:
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.conv2d.padding:
            _pad_in_numbers(model, node)
    model.graph.eliminate_dead_code()
    model.recompile()


def _pad_in_numbers(model: GraphModule, node: Node) -> None:
    """``conv2d(x, w, b, stride, "same")`` becomes ``conv2d(x, w, b, stride, [1, 1])``.

    An even kernel pads one more at the end than at the start; the rest is then a ``pad`` of its own.
    """
    x, weight, bias = node.args[0], node.args[1], argument(node, 2, "bias")
    stride, padding = argument(node, 3, "stride", [1, 1]), argument(node, 4, "padding", "valid")
    dilation, groups = argument(node, 5, "dilation", [1, 1]), argument(node, 6, "groups", 1)
    assert isinstance(x, Node), node
    assert isinstance(weight, Node), node
    assert isinstance(dilation, (list, tuple)), node
    totals = [0, 0]
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, shape_of(weight)[2:], strict=True)]
    with model.graph.inserting_before(node):
        if any(total % 2 for total in totals):
            fake = x.meta["val"]
            pads = [0, totals[1] % 2, 0, totals[0] % 2]
            x = model.graph.call_function(aten.pad.default, (x, pads))
            x.meta.update(node.meta)
            with fake.fake_mode:
                x.meta["val"] = aten.pad.default(fake, pads)
        halves = [total // 2 for total in totals]
        new = model.graph.call_function(
            aten.conv2d.default,
            (x, weight, bias, stride, halves, dilation, groups),  # type: ignore[arg-type]
        )
    new.meta.update(node.meta)
    node.replace_all_uses_with(new)
