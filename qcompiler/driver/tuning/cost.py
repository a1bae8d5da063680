"""The cost model: gradient-boosted trees over what MetaSchedule extracts from a schedule, shared by all tasks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.cost_model.xgb_model import PackSum, XGBConfig, XGBModel
from tvm.s_tir.meta_schedule.feature_extractor import PerStoreFeature, PyFeatureExtractor

from qcompiler.errors import TuningLogError

WARMUP = 16
"""Measurements before which candidates are ranked at random."""

_CONFIG = XGBConfig(max_depth=6, gamma=0.01, eta=0.2, nthread=1)
"""Few rows, so that threads only cost; shallow trees and a minimum of gain, so that training ends in a fraction of a second."""


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
        extractor=RememberingExtractor(), config=_CONFIG, num_warmup_samples=WARMUP, early_stopping_rounds=5
    )


def save(model: Any, path: Path) -> bool:
    """Writes what the model has learned; whether it had learned anything."""
    booster = model.booster
    if booster is None:
        return False
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(bytes(booster.save_raw("ubj")))
    partial.replace(path)
    return True


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
        from qcompiler.driver.tuning.light import keep_out

        keep_out()
        context = ms.TuneContext(schedules[0].mod, target=self._target, num_threads=1)
        candidates = [ms.search_strategy.MeasureCandidate(sch, []) for sch in schedules]
        features = [f.numpy().astype("float32") for f in self._extractor.extract_from(context, candidates)]
        packed = PackSum(features, None)
        found: np.ndarray[Any, Any] = packed.predict_with_score(self._booster.predict(packed.dmatrix))
        return [float(score) for score in found]
