"""Whether what an arm reads in the test images may be their source, and what is left within one source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd

from medlt.evaluation.arms import ArmScores
from medlt.metrics.confounding import associations, within_auroc
from medlt.metrics.ranking import auroc

COLUMNS = (
    "finding", "column", "images", "positives", "cramers_v", "distance", "top_value", "top_share",
    "top_share_negatives", "confounded", "arm", "auroc", "within_auroc",
)  # fmt: skip


def confounding_table(tested: ArmScores, attributes: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """Return a row for each finding, column of `medlt.metrics.confounding` and arm, with `COLUMNS`.

    attributes: of the test rows, in their order. auroc and within_auroc, over images whose value is known: of all
    pairs, and of pairs of equal value, means over seeds.
    """
    rows, lines = attributes.reset_index(drop=True), []
    for one in associations(tested.truth, tested.findings, rows):
        k, values = tested.findings.index(one.finding), rows[one.column]
        truth = np.where(values.isna(), np.nan, tested.truth[:, k])
        for arm in arms:
            whole = float(np.mean([auroc(truth, scores[:, k]) for scores in tested.scores[arm]]))
            within = float(np.mean([within_auroc(truth, scores[:, k], values) for scores in tested.scores[arm]]))
            measured = {"confounded": one.confounded, "arm": arm, "auroc": whole, "within_auroc": within}
            lines.append(asdict(one) | measured)
    return pd.DataFrame(lines, columns=list(COLUMNS))


def confounded_tail(tested: ArmScores, attributes: pd.DataFrame, tail: Sequence[str]) -> list[str]:
    """Return a warning for each tail finding that goes with a column of the test rows."""
    columns = [tested.findings.index(name) for name in tail]
    every = associations(tested.truth[:, columns], list(tail), attributes.reset_index(drop=True))
    return [one.sentence() for one in every if one.confounded]
