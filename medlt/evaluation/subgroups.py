"""For whom? AP and AUROC of one arm in parts of the test set, and the gap of each part to all other images.

A gap is of the same findings on both sides: those with FEWEST_PATIENTS positive patients in the part and as many in the
rest; otherwise it would compare findings, not patients. AP grows with how common a finding is, and on few positives by
itself; AUROC does not: a gap in AP alone may be one of prevalence or of size. Patients are drawn once for all parts, so
one with images in two parts is in both or in neither. Intervals are as in `medlt.metrics.draws`, centred, and not
corrected for the number of parts: on parts drawn by lot 90 % intervals missed 0 in 11-12 % of 150 trials.

Notation: N images, K findings, D draws, S seeds, P patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from medlt.evaluation.introspection import AGES, age_band
from medlt.metrics.draws import owners, resampled, run_noise, spread
from medlt.metrics.ranking import METRICS, macro, ranked_per_draw
from medlt.metrics.reasons import FEWEST_PATIENTS, positive_patients
from medlt.types import InputError

ATTRIBUTES = ("view", "sex", "age", "source")
COLUMNS = "attribute value images patients metric score low high gap gap_low gap_high reason".split()
UNKNOWN = "unknown"
TOO_FEW = f"no finding has {FEWEST_PATIENTS} positive patients both in it and in the rest"


@dataclass(frozen=True)
class _Test:
    """The test set with one arm's scores. scores: [S,N,K]; weights: [D,P]; owner: [N] in 0..P-1; noise: [D]."""

    truth: np.ndarray
    scores: np.ndarray
    owner: np.ndarray
    weights: np.ndarray
    noise: np.ndarray
    level: float
    found: dict[bytes, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(value [2,1,S,K], in each draw [2,D,S,K]) of AP and AUROC on these rows, bool [N].

        Measured once: of two values of an attribute, each is the other's rest.
        """
        if (key := rows.tobytes()) not in self.found:
            given = self.truth[rows], self.scores[:, rows]
            point = ranked_per_draw(*given, np.ones((1, self.weights.shape[1])), self.owner[rows])
            self.found[key] = point, ranked_per_draw(*given, self.weights, self.owner[rows])
        return self.found[key]

    def enough(self, rows: np.ndarray) -> np.ndarray:
        """bool [K]: findings with FEWEST_PATIENTS positive patients among these rows."""
        held = self.truth[rows].T[:, :, None]
        return np.array([positive_patients(one, self.owner[rows]) >= FEWEST_PATIENTS for one in held])


def subgroups(
    truth: np.ndarray,
    scores: np.ndarray,
    patients: Sequence[str],
    attributes: pd.DataFrame,
    findings: Sequence[str],
    tail: Sequence[str],
    *,
    draws: int = 2000,
    rng: np.random.Generator,
    level: float = 0.95,
) -> pd.DataFrame:
    """One row a value of an attribute and metric: AP and AUROC, macro over all findings, and over those of the tail.

    truth: [N,K] in {0,1,NaN}; scores: [S,N,K]; patients: [N]; attributes: N rows in the same order, those of view, sex,
    age (years, taken in bands) and source that are columns of it. Columns: COLUMNS; `patients` are the part's, `reason`
    says why a number is missing. Raises InputError where the rows do not fit.
    """
    truth, scores = np.asarray(truth, np.float64), np.asarray(scores)
    if scores.ndim != 3 or scores.shape[1:] != truth.shape or truth.shape[1] != len(findings):
        raise InputError(f"truth {truth.shape} and scores {scores.shape} do not fit; need [N,K] and [S,N,K]")
    if not len(truth) == len(patients) == len(attributes):
        raise InputError(f"{len(truth)} images, {len(patients)} patients, {len(attributes)} rows of attributes")
    owner, columns = owners(patients), {"": list(range(len(findings)))}
    if tail:
        columns["tail "] = [list(findings).index(name) for name in tail]
    weights = _weights(int(owner.max(initial=0)) + 1, draws, rng)
    test = _Test(truth, scores, owner, weights, run_noise(len(scores), draws, rng), level)
    rows = [line for part in _parts(attributes) for line in _lines(test, *part, columns)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _weights(count: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """[draws,count] as `resampled` draws them, in parts: as they come they are twice as large."""
    weights = np.empty((draws, count), np.float32, order="F")
    for start in range(0, draws, 100):
        weights[start : start + 100] = resampled(count, min(100, draws - start), rng)
    return weights


def _parts(attributes: pd.DataFrame) -> Iterator[tuple[str, str, np.ndarray]]:
    """(attribute, value, rows that have it, bool [N]), unknown last and only where some are."""
    for name in ATTRIBUTES:
        if name in attributes:
            given = np.array([_value(name, value) for value in attributes[name]])
            order = [band for _, band in AGES] if name == "age" else sorted({*given.tolist()} - {UNKNOWN})
            for value in (*order, UNKNOWN):
                if (rows := given == value).any():
                    yield name, value, rows


def _value(name: str, value: object) -> str:
    """An attribute's value as the table names it."""
    told = age_band(value) if name == "age" else "" if pd.isna(value) else str(value).strip()
    return told or UNKNOWN


def _lines(
    test: _Test, attribute: str, value: str, rows: np.ndarray, columns: dict[str, list[int]]
) -> Iterator[dict[str, object]]:
    """The lines of one part, `rows` bool [N]: a metric each of all findings and of the tail."""
    both = [part for part in (rows, ~rows) if part.any()]
    sides, enough = [test.of(part) for part in both], np.all([test.enough(part) for part in both], axis=0)
    told = {"attribute": attribute, "value": value, "images": int(rows.sum())}
    told["patients"] = len(np.unique(test.owner[rows]))
    for prefix, wanted in columns.items():
        for m, metric in enumerate(METRICS):
            defined = enough & ~np.any([np.isnan(point[m, 0]).any(0) for point, _ in sides], axis=0)
            shared = [k for k in wanted if defined[k]]
            chosen = [(point[m][..., shared], drawn[m][..., shared]) for point, drawn in sides]
            yield {**told, "metric": f"{prefix}{metric}", **_numbers(test, chosen)}


def _numbers(test: _Test, sides: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, object]:
    """Score, gap, their intervals and the reason why one is missing; sides: (point [1,S,C], drawn [D,S,C]) of each."""
    undefined = np.any([np.isnan(drawn) for _, drawn in sides], axis=0)
    points = [macro(point)[0] for point, _ in sides]
    draws = [macro(np.where(undefined, np.nan, drawn)) for _, drawn in sides]
    numbers: dict[str, object] = {**dict.fromkeys(COLUMNS[5:11], np.nan), "score": float(points[0].mean())}
    if np.isnan(points[0]).any():
        return numbers | {"reason": TOO_FEW}
    seen = spread(points[0], draws[0], test.noise, test.level, centred=True)
    numbers |= {"low": float(np.clip(seen.low, 0, 1)), "high": float(np.clip(seen.high, 0, 1))}
    if len(sides) == 1:
        return numbers | {"reason": "no gap: all images are in it"}
    apart = points[0] - points[1]
    seen = spread(apart, draws[0] - draws[1], test.noise, test.level, centred=True)
    why = "most draws hold no positive: no interval" if np.isnan(seen.low) else ""
    return numbers | {"gap": float(apart.mean()), "gap_low": seen.low, "gap_high": seen.high, "reason": why}
