"""Whether a finding goes with where its image comes from: its source, site, device or view.

A classifier may then learn the source instead of the finding. In a table of present and absent against the values of
such a column, with N images, and p and q the distributions of the values among positives and negatives:

    Cramer's V = sqrt(chi2 / N),      distance = sum_v |p_v - q_v| / 2        (both in [0,1])

V is bounded by the prevalence, and small for a rare finding; the distance is not. The AUROC within the values counts
only pairs of a positive and a negative of the same value, so nothing that differs between values alone adds to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medlt.metrics.ranking import auroc

COLUMNS = ("source", "site", "device", "view")
"""Columns that say where an image comes from."""
MOST_VALUES = 50
"""A column with more values names images, not places, and is left out."""
FEWEST = 10
"""Positives below which no warning is given: a few may share a source by chance."""
HIGH_V, HIGH_DISTANCE, MOST = 0.3, 0.5, 0.9


@dataclass(frozen=True)
class Association:
    """How a finding goes with a column.

    images: with known label and value; positives: of these; top_value: value of most positives; top_share and
    top_share_negatives: its share of the positives and of the negatives.
    """

    finding: str
    column: str
    images: int
    positives: int
    cramers_v: float
    distance: float
    top_value: str
    top_share: float
    top_share_negatives: float

    @property
    def confounded(self) -> bool:
        """Return whether the finding is nearly a label of the column."""
        if self.positives < FEWEST:
            return False
        one = self.top_share >= MOST and self.top_share - self.top_share_negatives >= 0.2
        return self.cramers_v >= HIGH_V or self.distance >= HIGH_DISTANCE or one

    def sentence(self) -> str:
        """Return a warning in one line."""
        return (
            f"{self.finding} goes with the {self.column}: {self.top_share:.0%} of its {self.positives} positives and "
            f"{self.top_share_negatives:.0%} of its negatives have {self.column} {self.top_value} (Cramer's V "
            f"{self.cramers_v:.2f}); a classifier may learn the {self.column}"
        )


def crosstab(labels: np.ndarray, values: pd.Series) -> pd.DataFrame:
    """Return the counts of images by value: columns absent, present; labels [N] in {0,1,NaN}; values [N], blank if
    unknown.
    """
    known = ~np.isnan(labels) & values.notna().to_numpy()
    named = values[known].astype(str).to_numpy()
    table = pd.crosstab(named, labels[known].astype(int)).reindex(columns=[0, 1], fill_value=0)
    return table.rename_axis(index="value", columns=None).set_axis(["absent", "present"], axis=1)


def association(finding: str, column: str, table: pd.DataFrame) -> Association | None:
    """Return how the finding goes with the column, from its `crosstab`; None without two values, or without a positive
    or a negative.
    """
    counts = table.to_numpy(float)
    absent, present = map(float, counts.sum(0))
    total = absent + present
    if len(counts) < 2 or not absent or not present:
        return None
    expected = np.outer(counts.sum(1), [absent, present]) / total
    p, q, top = counts[:, 1] / present, counts[:, 0] / absent, int(counts[:, 1].argmax())
    v = float(np.sqrt(((counts - expected) ** 2 / expected).sum() / total))
    distance = float(np.abs(p - q).sum() / 2)
    return Association(
        finding, column, int(total), int(present), v, distance, str(table.index[top]), float(p[top]), float(q[top])
    )


def usable(rows: pd.DataFrame) -> list[str]:
    """Return the names of `COLUMNS` in the rows with 2 to `MOST_VALUES` values, at most one for every two rows."""
    known = [name for name in COLUMNS if name in rows]
    return [name for name in known if 2 <= rows[name].nunique() <= min(MOST_VALUES, max(2, len(rows) // 2))]


def associations(labels: np.ndarray, findings: Sequence[str], rows: pd.DataFrame) -> list[Association]:
    """Return the associations of every finding with every usable column; labels [N,K], rows [N] with the columns."""
    every = [
        association(finding, column, crosstab(labels[:, k], rows[column].reset_index(drop=True)))
        for column in usable(rows)
        for k, finding in enumerate(findings)
    ]
    return [one for one in every if one is not None]


def within_auroc(truth: np.ndarray, score: np.ndarray, values: pd.Series) -> float:
    """Return the AUROC over pairs of equal value: the mean of the values' AUROC, weighted by their numbers of pairs.

    truth: [N] in {0,1,NaN}; score: [N]; values: [N], blank unknown. NaN without such a pair.
    """
    named, total, pairs = values.reset_index(drop=True), 0.0, 0
    for value in named.dropna().unique():
        at = (named == value).to_numpy()
        count = int((truth[at] == 1).sum()) * int((truth[at] == 0).sum())
        if count:
            total, pairs = total + count * auroc(truth[at], score[at]), pairs + count
    return total / pairs if pairs else float("nan")
