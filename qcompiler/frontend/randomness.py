"""Where a model draws random numbers while it is trained: dropout, stochastic depth, noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

from qcompiler.errors import FrontendError


def random_modules(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> tuple[str, ...]:
    """The submodules that draw random numbers in training mode, in the order in which they run.

    A copy of the module runs once in training mode, and every operator is asked whether it is random. So it does not
    matter what a module is called, nor whether it is a module or a function. The module itself, its modes and the
    state of the random numbers stay what they are.

    Args:
        model: the module.
        example_inputs: its inputs; of two samples, where it has batch norms that one sample is too few for.

    Returns:
        Paths as of ``named_modules``, each with its class: ``classifier.0 (Dropout)``.

    Raises:
        FrontendError: the module cannot be copied, or does not run in training mode.
    """
    name = type(model).__name__
    try:
        trained = copy.deepcopy(model)
        for module in trained.modules():  # train() is refused by modules that come out of an exported program
            module.training = True
        watch = _Watch(trained)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), watch.tracker, watch:
            trained(*example_inputs)
    except Exception as error:  # the user's module may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FrontendError(f"{name} does not run in training mode: {reason}") from error
    return tuple(watch.found)


def dropouts(program: ExportedProgram) -> tuple[str, ...]:
    """The dropouts of a program that was exported for inference, by their modules' paths.

    Such a program still has dropouts, which do nothing. Of other random operators nothing is left in it.
    """
    found: dict[str, None] = {}
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.dropout.default and node.args[1] != 0:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            found[f"{stack[-1][0] or node.name} (dropout)" if stack else f"{node.name} (dropout)"] = None
    return tuple(found)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hook of subclasses
    """Notes the module that runs whenever a random operator does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracker = ModuleTracker()
        self.found: dict[str, None] = {}
        self._root = type(model).__name__
        self._modules = dict(model.named_modules())

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()):
            # The innermost of the modules that run has the longest path; the tracker's begin with the root's class.
            path = max(self.tracker.parents - {"Global"}, key=len, default=self._root)
            path = path.removeprefix(self._root).removeprefix(".")
            kind = type(self._modules[path]).__name__ if path in self._modules else "module"
            self.found[f"{path or 'the model'} ({kind})"] = None
        return func(*args, **(kwargs or {}))
