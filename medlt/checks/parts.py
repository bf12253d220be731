"""What a run gives to an optional check, and the guard around the check of a plug-in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from medlt.checks.folds import CrossFitClassifiers
from medlt.plugins import CHECKS, PluginError
from medlt.training.runtime import Runtime
from medlt.types import Batch, Check, CheckResult


@dataclass(frozen=True, kw_only=True)
class CheckParts:
    """The parts of a check: build(settings, parts) takes those that it needs.

    rows: the real train rows: index uid, patient_id, fold, one 1/0/NaN column per finding. images: uids -> real train
    images, uint8 [B,1,size,size]. verifiers: classifiers by fold; verifier k was not trained on fold k. In a private
    run of a method that starts from noise, rows are made up, there is no verifier, and `images` raises InputError.
    """

    findings: tuple[str, ...]
    tail: tuple[str, ...]
    rows: pd.DataFrame
    images: Callable[[Sequence[str]], Tensor]
    verifiers: CrossFitClassifiers
    size: int
    runtime: Runtime


@dataclass(frozen=True)
class PluginCheck:
    """A plug-in's check, whose results are validated: one per image, in its order, under the plug-in's name."""

    name: str
    check: Check

    def __call__(self, batch: Batch) -> Sequence[CheckResult]:
        """Return one CheckResult per image. Raises PluginError for other results."""
        with CHECKS.guarded(self.name, "failed"):
            results = list(self.check(batch))
        got = [(result.check, result.uid) for result in results if isinstance(result, CheckResult)]
        if got != [(self.name, str(uid)) for uid in batch.rows.index] or len(got) != len(results):
            what = f"must return one CheckResult({self.name!r}, ...) per image, in the order of the batch"
            raise PluginError(f"{CHECKS.where(self.name)} {what}; correct the package")
        return results
