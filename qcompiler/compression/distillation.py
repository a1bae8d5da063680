"""A loss with a larger or unquantized network as the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import nn
from torch.nn import functional as F

from qcompiler.errors import CompressionError

FeatureLoss = Literal["mse", "attention"]


@runtime_checkable
class Tappable(Protocol):
    """A module that gives intermediate results by the names of another model's modules."""

    def tap(self, names: Sequence[str]) -> nn.Module: ...


@dataclass(frozen=True)
class DistillationLoss:
    """A batch's loss and its parts, each a scalar tensor.

    Attributes:
        total: what to differentiate; the parts, weighted.
        hard: cross entropy with the labels; 0 without labels.
        soft: ``T**2 KL(softmax(teacher / T) || softmax(student / T))``.
        features: mean over the features of their distances.
        logits: the student's logits, [N, classes].
    """

    total: torch.Tensor
    hard: torch.Tensor
    soft: torch.Tensor
    features: torch.Tensor
    logits: torch.Tensor


class Distillation:
    """Loss of a student that follows a teacher.

    ``total = (1 - soft_weight) hard + soft_weight soft + feature_weight features``, with the soft loss of Hinton et al.
    2015. The distance of two features is ``mean((s - t)**2) / mean(t**2)`` for ``mse``. For ``attention`` (Zagoruyko and
    Komodakis 2017) it is the squared distance of ``mean over channels of x**2``, each flattened and normalized, so that
    the numbers of channels may differ, as they do after pruning.

    Args:
        teacher: a module; it is set to evaluation mode and computes without gradients.
        student: a module, or what :func:`qcompiler.prepare_qat` gives.
        temperature: of both softmaxes, above 0.
        soft_weight: share of the soft loss, in [0, 1].
        features: paths of modules whose results are compared; a mapping where the student's names differ from the
            teacher's.
        feature_weight: weight of the features' distance, at least 0.
        feature_loss: ``mse`` or ``attention``.
        logits: takes the logits, [N, classes], out of what the modules return; None if that is all they return.

    Raises:
        CompressionError: an option is out of its range, or a name is no module's.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        temperature: float = 4.0,
        soft_weight: float = 0.9,
        features: Sequence[str] | Mapping[str, str] = (),
        feature_weight: float = 1.0,
        feature_loss: FeatureLoss = "mse",
        logits: Callable[[Any], torch.Tensor] | None = None,
    ) -> None:
        if temperature <= 0:
            raise CompressionError(f"temperature is {temperature}; it must be above 0")
        if not 0 <= soft_weight <= 1:
            raise CompressionError(f"soft_weight is {soft_weight}; it must be in [0, 1]")
        if feature_weight < 0:
            raise CompressionError(f"feature_weight is {feature_weight}; it must be at least 0")
        if feature_loss not in get_args(FeatureLoss):
            raise CompressionError(
                f"unknown feature_loss {feature_loss!r}; known: {', '.join(get_args(FeatureLoss))}"
            )
        self.temperature, self.soft_weight, self.feature_weight = temperature, soft_weight, feature_weight
        self.distance = _DISTANCES[feature_loss]
        self.names = dict(features) if isinstance(features, Mapping) else {name: name for name in features}
        self.teacher = teacher.eval()
        self._teacher = _tapped(teacher, tuple(self.names), "teacher")
        self._student = _tapped(student, tuple(self.names.values()), "student")
        self._logits = logits

    def __call__(self, *inputs: torch.Tensor, labels: torch.Tensor | None = None) -> DistillationLoss:
        """Runs both on a batch.

        Args:
            inputs: the modules' inputs.
            labels: classes, int64 [N], or None: then the soft loss alone stands for them.

        Raises:
            CompressionError: the logits or two features have different shapes.
        """
        with torch.no_grad():
            wanted, targets = self._teacher(*inputs)
        result, found = self._student(*inputs)
        wanted, result = self._checked(wanted, "teacher"), self._checked(result, "student")
        if wanted.shape != result.shape:
            raise CompressionError(
                f"the teacher's logits have shape {list(wanted.shape)}, the student's {list(result.shape)}; they must "
                "be the same"
            )
        soft = self._soft(result, wanted)
        hard = result.new_zeros(()) if labels is None else F.cross_entropy(result, labels)
        distances = [self._compared(found[s], targets[t], t) for t, s in self.names.items()]
        features = torch.stack(distances).mean() if distances else result.new_zeros(())
        share = 1.0 if labels is None else self.soft_weight
        total = (1 - share) * hard + share * soft + self.feature_weight * features
        return DistillationLoss(total, hard, soft, features, result)

    def _checked(self, outputs: Any, who: str) -> torch.Tensor:
        logits = outputs if self._logits is None else self._logits(outputs)
        if not isinstance(logits, torch.Tensor):
            raise CompressionError(
                f"the {who} returns a {type(logits).__name__}; give logits=, a function that takes the logits out of it"
            )
        return logits

    def _soft(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        t = self.temperature
        found, wanted = F.log_softmax(student / t, 1), F.log_softmax(teacher / t, 1)
        return F.kl_div(found, wanted, reduction="batchmean", log_target=True) * t**2

    def _compared(self, student: torch.Tensor, teacher: torch.Tensor, name: str) -> torch.Tensor:
        if self.distance is _squared and student.shape != teacher.shape:
            raise CompressionError(
                f"feature {name!r} has shape {list(teacher.shape)} in the teacher and {list(student.shape)} in the "
                'student; feature_loss="attention" compares features of different numbers of channels'
            )
        return self.distance(student, teacher)


def _squared(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return (student - teacher).square().mean() / teacher.square().mean().clamp(min=1e-12)


def _attention(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    maps = [F.normalize(x.square().mean(1).flatten(1), dim=1) for x in (student, teacher)]
    return (maps[0] - maps[1]).square().sum(1).mean()


_DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mse": _squared,
    "attention": _attention,
}

_Tap = Callable[..., tuple[Any, Mapping[str, torch.Tensor]]]


def _tapped(module: nn.Module, names: tuple[str, ...], who: str) -> _Tap:
    """A function from inputs to (outputs, results of the named modules)."""
    if isinstance(module, Tappable):
        tapped: _Tap = module.tap(names)
        return tapped
    known = dict(module.named_modules())
    for name in names:
        if not name or name not in known:
            raise CompressionError(
                f"the {who} has no module {name!r}; it has: {', '.join(k for k in known if k)}"
            )

    def run(*inputs: torch.Tensor) -> tuple[Any, Mapping[str, torch.Tensor]]:
        with _recorded({name: known[name] for name in names}) as results:
            return module(*inputs), results

    return run


@contextmanager
def _recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """The results of some modules during a call; of a module that is called twice, the last."""
    results: dict[str, torch.Tensor] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, result: Any) -> None:
            if not isinstance(result, torch.Tensor):
                raise CompressionError(
                    f"module {name!r} returns a {type(result).__name__}; a feature must be a tensor"
                )
            results[name] = result.clone()  # what follows may work in place

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(record(name)).remove)
        yield results
