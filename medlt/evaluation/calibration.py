"""Choose the strength of guidance from measurements of the same rows with and without it.

A strength is allowed while the images stay as near to real ones as real ones are to each other, and while a verifier
that did not guide them still sees their finding. Distances are means over the k nearest real train images, in features
of a verifier; a real validation image is beyond its 95 % quantile in 5 % of cases, by definition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medlt.metrics.features import scaled
from medlt.metrics.rarity import avg_knn

NEIGHBOURS, QUANTILE, MARGIN = 5, 0.95, 0.05
COLUMNS = (
    "strength", "response", "displacement", "displacement_sd", "knn", "outside", "verifier", "verifier_change",
    "verifier_se", "signal", "rows", "allowed",
)  # fmt: skip


@dataclass(frozen=True)
class RealDistances:
    """Features [N,D] of real train images, and the quantile of the distances of real validation images to them."""

    train: np.ndarray
    limit: float

    @classmethod
    def of(cls, train: np.ndarray, held_out: np.ndarray) -> RealDistances:
        """Return them from features of train and validation images, which share a scale: that of the train images."""
        reference, other = scaled(train, held_out)
        return cls(train, float(np.quantile(avg_knn(reference, other, NEIGHBOURS), QUANTILE)))

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Return the mean distance [B] of images to their nearest train images, as a share of the limit."""
        reference, other = scaled(self.train, features)
        return np.asarray(avg_knn(reference, other, NEIGHBOURS)) / self.limit


@dataclass(frozen=True)
class PairedMeasures:
    """Measurements of B images, [B] each; NaN where there is no verifier or no signal.

    displacement: of the finished latent from its unguided twin; knn: as in `RealDistances.distance`; verifier:
    probability of the row's finding; signal: the one that the guide raises, which is no evidence of quality.
    """

    displacement: np.ndarray
    knn: np.ndarray
    verifier: np.ndarray
    signal: np.ndarray


def summary(strength: float, response: float, guided: PairedMeasures, plain: PairedMeasures) -> dict[str, float]:
    """Return a row of the table, without `allowed`: the measurements of one strength beside those without guidance."""
    change, rows = guided.verifier - plain.verifier, len(guided.knn)
    known = np.isfinite(guided.knn)
    return {
        "strength": strength,
        "response": response,
        "displacement": float(guided.displacement.mean()),
        "displacement_sd": float(guided.displacement.std()),
        "knn": float(guided.knn.mean()),
        "outside": float((guided.knn > 1).mean()) if known.all() else float("nan"),
        "verifier": float(guided.verifier.mean()),
        "verifier_change": float(change.mean()),
        "verifier_se": float(change.std(ddof=1) / rows**0.5) if rows > 1 else float("nan"),
        "signal": float(guided.signal.mean()),
        "rows": rows,
    }


def allowed(row: dict[str, float], plain: dict[str, float], max_outside: float, max_label_loss: float) -> bool:
    """Return whether the images of a row stay near real ones and keep their label. An unknown value forbids nothing."""
    outside = max(max_outside, plain["outside"] + MARGIN) if math.isfinite(plain["outside"]) else max_outside
    near = not row["outside"] > outside
    labelled = not row["verifier_change"] < -max_label_loss * plain["verifier"]
    return near and labelled


def chosen(table: pd.DataFrame) -> float:
    """Return the largest strength before the first that is not allowed; 0 if there is none.

    table: rows of `summary` with `allowed`, any order; the row of strength 0 is the unguided one.
    """
    rising = table[table["strength"] > 0].sort_values("strength")
    good = rising[rising["allowed"].astype(bool).cummin()]
    return float(good["strength"].max()) if len(good) else 0.0


def tabulate(rows: Sequence[dict[str, float]]) -> pd.DataFrame:
    """Return the rows as a table with the columns COLUMNS."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS))
