"""The cost model: gradient-boosted trees over what MetaSchedule extracts from a schedule, shared by all tasks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.cost_model.xgb_model import PackSum, XGBConfig, XGBModel
from tvm.s_tir.meta_schedule.feature_extractor import PerStoreFeature, PyFeatureExtractor
from tvm.s_tir.schedule import Trace

from qcompiler.driver.tuning.light import keep_out
from qcompiler.driver.tuning.log import Record, TuningLog
from qcompiler.errors import TuningLogError

WARMUP = 16
"""Measurements before which candidates are ranked at random."""

_CONFIG = XGBConfig(max_depth=3, gamma=1e-5, eta=0.2, nthread=1)
"""Shallow trees, which rank schedules of kernels that were not trained on better than deep ones do; a least gain so small
that differences of a percent still count. The rows are few, so that threads would only cost.
"""

_PATIENCE = 5
"""Rounds of training without a better fit after which it ends."""

_RECORDS = 16
"""Schedules of one kernel that a model of a whole log learns from: the fastest, and others from all over the range."""


_LEAST = 32
"""Schedules below which a whole log teaches too little: a model that is there already is kept."""


@derived_object
class RememberingExtractor(PyFeatureExtractor):  # type: ignore[misc]
    """MetaSchedule's features of a schedule, each computed once.

    The spaces are small, so that an evolutionary search meets the same schedules again and again, and extracting features
    is most of what it does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inner = PerStoreFeature()
        self.known: dict[int, Any] = {}

    def extract_from(self, context: Any, candidates: list[Any]) -> list[Any]:
        keys = [int(tvm_ffi.structural_hash(c.sch.mod)) for c in candidates]
        new = {key: c for key, c in zip(keys, candidates, strict=True) if key not in self.known}
        if new:
            self.known.update(zip(new, self.inner.extract_from(context, list(new.values())), strict=True))
        return [self.known[key] for key in keys]


def make() -> Any:
    """A cost model that knows nothing yet; it learns when it is told results."""
    logging.getLogger("tvm.s_tir.meta_schedule").setLevel(logging.ERROR)
    return XGBModel(
        extractor=RememberingExtractor(),
        config=_CONFIG,
        num_warmup_samples=WARMUP,
        early_stopping_rounds=_PATIENCE,
    )


def learn(log: TuningLog, tvm_target: tvm.target.Target) -> bytes | None:
    """A model of all kernels of a log, as the bytes of its file; None where there is too little to compare."""
    extractor = PerStoreFeature()
    features: list[np.ndarray[Any, Any]] = []
    shares: list[float] = []
    for index, records in sorted(log.records.items()):
        module = log.module(index)
        chosen = _spread(records)
        if module is None or len(chosen) < 2:
            continue
        schedules = [_replayed(module, record) for record in chosen]
        best = chosen[0].score
        for record, found in zip(chosen, _features(extractor, schedules, tvm_target), strict=True):
            features.append(found)
            shares.append(best / record.score)
    if len(features) < _LEAST:
        return None
    model = XGBModel(config=_CONFIG, early_stopping_rounds=_PATIENCE)
    model._train(xs=features, ys=np.asarray(shares, np.float32))
    return bytes(model.booster.save_raw("ubj"))


def _spread(records: Sequence[Record]) -> list[Record]:
    """The fastest record first, then others in equal distances down to the slowest."""
    ordered = sorted(records, key=lambda r: r.score)
    if len(ordered) <= _RECORDS:
        return ordered
    return [ordered[round(k * (len(ordered) - 1) / (_RECORDS - 1))] for k in range(_RECORDS)]


def _replayed(module: tvm.IRModule, record: Record) -> Schedule:
    sch = Schedule(module)
    Trace.apply_json_to_schedule(record.trace, sch)
    return sch


def _features(extractor: Any, schedules: Sequence[Schedule], tvm_target: Any) -> list[np.ndarray[Any, Any]]:
    """For each schedule of one kernel a row for each of its stores."""
    keep_out()
    context = ms.TuneContext(schedules[0].mod, target=tvm_target, num_threads=1)
    candidates = [ms.search_strategy.MeasureCandidate(sch, []) for sch in schedules]
    return [f.numpy().astype("float32") for f in extractor.extract_from(context, candidates)]


class SavedModel:
    """A cost model from a file, to rank schedules with.

    Raises:
        TuningLogError: the file cannot be read.
    """

    def __init__(self, path: Path, tvm_target: Any) -> None:
        import xgboost

        self._booster = xgboost.Booster()
        try:
            self._booster.load_model(bytearray(path.read_bytes()))
        except (OSError, xgboost.core.XGBoostError) as error:
            raise TuningLogError(
                f"{path} cannot be read: {str(error)[:200]}; remove it, or tune again"
            ) from error
        self._target = tvm_target
        self._extractor = PerStoreFeature()

    def scores(self, schedules: Sequence[Schedule]) -> list[float]:
        """For each schedule of one kernel a number; the larger, the faster it is expected to be."""
        features = _features(self._extractor, schedules, self._target)
        packed = PackSum(features, None)
        found: np.ndarray[Any, Any] = packed.predict_with_score(self._booster.predict(packed.dmatrix))
        return [float(score) for score in found]
