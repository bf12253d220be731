"""Patient-level paired bootstrap of the difference between two arms, and the verdict that the interval allows.

A draw resamples patients with replacement, all images of a patient together, the same patients for both arms. Arms
trained with S seeds are compared by the mean of their S metrics, never by the metric of averaged scores; how much whole
runs differ is part of the interval (see `draws`).

| metric | needs | better |
|---|---|---|
| AP, AUROC | any score | higher |
| sensitivity, balanced accuracy, F1 | decisions, by thresholds that validation chose | higher |
| ECE | probabilities: it is left out where a score is outside [0,1] | lower |

A finding without a positive (or without another thing that the metric needs) has no value, and `reason` says why. A
finding without a value in one arm or seed is left out of all of them, so that means are over the same findings.
Intervals and verdicts are not corrected for the number of findings. The main results are tail and macro AP; `p_holm`
corrects the p value of one finding for the number of findings. Notation as in `ranking`; M metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

from medlt.metrics.calibration import calibration_error, probabilities
from medlt.metrics.decisions import DECISIONS, decision_metrics
from medlt.metrics.draws import DIFFERENCE_RANGE, owners, patient_weights, resampled, run_noise, spread
from medlt.metrics.power import smallest_gain
from medlt.metrics.ranking import METRICS, macro, ranked_per_draw
from medlt.metrics.reasons import FEWEST_PATIENTS, doubt, missing, positive_patients
from medlt.metrics.several import holm
from medlt.types import InputError

Outcome: TypeAlias = Literal["helps", "no evidence", "harms"]
Groups: TypeAlias = Mapping[str, Sequence[str]]

LOWER_IS_BETTER = ("ECE",)

_CHUNK = 1 << 23  # weights drawn at once: 64 MB as int64, 32 MB as float32

__all__ = [
    "FEWEST_PATIENTS",
    "difference",
    "interval",
    "metric_table",
    "metrics_per_draw",
    "patient_weights",
    "verdict_of",
]


def verdict_of(low: float, high: float) -> Outcome:
    """Return the verdict for the interval [low, high] of a difference, where a higher metric is better."""
    return "helps" if low > 0 else "harms" if high < 0 else "no evidence"


def names(scores: np.ndarray, decided: np.ndarray | None) -> tuple[str, ...]:
    """Return the metrics that can be computed from these scores and, if given, decisions."""
    return (*METRICS, *(DECISIONS if decided is not None else ()), *(("ECE",) if probabilities(scores) else ()))


def metrics_per_draw(
    truth: np.ndarray,
    scores: np.ndarray,
    weights: np.ndarray,
    decided: np.ndarray | None = None,
    owner: np.ndarray | None = None,
) -> np.ndarray:
    """Return the metrics of `names` for every draw, seed and finding, [M,D,S,K].

    truth: [N,K]; scores: [S,N,K]; weights: [D,O]; decided: [S,N,K] in {0,1,NaN}; owner: [N], the column of `weights`
    that holds for each row. Without `owner`, row i has column i.
    """
    parts = [ranked_per_draw(truth, scores, weights, owner)]
    if decided is not None:
        parts.append(np.stack([decision_metrics(truth, one, weights, owner) for one in decided], 2))
    if probabilities(scores):
        parts.append(np.stack([calibration_error(truth, one, weights, owner) for one in scores], 1)[None])
    return np.concatenate(parts)


@dataclass(frozen=True)
class Measured:
    """Metric values of A arms, `point` [M,A,S,K], and of the draws, `drawn` [M,D,S,K].

    drawn: the values of the first arm, minus those of the second arm if there are two. noise: [D], the noise between
    whole runs (`draws.run_noise`). A finding without a value in one arm or seed has no value in any of them.
    """

    metrics: tuple[str, ...]
    point: np.ndarray
    drawn: np.ndarray
    noise: np.ndarray


def measured(
    truth: np.ndarray,
    arms: np.ndarray,
    decided: np.ndarray | None,
    patients: Sequence[str],
    n_bootstrap: int,
    rng: np.random.Generator,
) -> Measured:
    """Return the metrics of one or two arms [A,S,N,K] under `n_bootstrap` resamples of the patients."""
    owner, shape, step = owners(patients), arms.shape, max(1, _CHUNK // len(set(patients)))
    metrics, flat = names(arms, decided), arms.reshape(-1, *arms.shape[2:])
    given = None if decided is None else decided.reshape(flat.shape)
    count, parts = int(owner.max()) + 1, []
    point = metrics_per_draw(truth, flat, np.ones((1, count)), given, owner)
    point = point.reshape(len(metrics), *shape[:2], shape[3])
    for start in range(0, n_bootstrap, step):
        weights = np.asfortranarray(resampled(count, min(step, n_bootstrap - start), rng), np.float32)
        values = metrics_per_draw(truth, flat, weights, given, owner)
        parts.append(values[:, :, : shape[1]] - values[:, :, shape[1] :] if len(arms) == 2 else values)
    lost = np.isnan(point).any((1, 2))[:, None, None]
    drawn = np.where(lost, np.nan, np.concatenate(parts, 1))
    return Measured(metrics, np.where(lost, np.nan, point), drawn, run_noise(shape[1], n_bootstrap, rng))


def _checked(truth: np.ndarray, k: int, patients: Sequence[str] | None = None, **given: np.ndarray | None) -> None:
    """Raise InputError unless truth is [N,k], all given arrays share a shape [S,N,k], and each row has a patient."""
    arrays = {name: array for name, array in given.items() if array is not None}
    shapes = {array.shape for array in arrays.values()}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != 3 or shape[1:] != truth.shape or truth.shape[1] != k or not truth.size:
        given_shapes = ", ".join(f"{name} {array.shape}" for name, array in {"truth": truth, **arrays}.items())
        raise InputError(
            f"the shapes {given_shapes} do not fit; give truth [N,{k}] and all others one shape [S,N,{k}], none empty"
        )
    if patients is not None and len(patients) != len(truth):
        raise InputError(f"{len(patients)} patients for {len(truth)} rows; give one patient_id for each row")


def _columns(findings: Sequence[str], groups: Groups | None) -> dict[tuple[str, str], list[int]]:
    """Return the columns to average over by (level, name): macro, each group and each finding."""
    at = {finding: k for k, finding in enumerate(findings)}
    grouped = {("group", name): [at[f] for f in members] for name, members in (groups or {}).items() if members}
    return {("macro", "macro"): list(at.values()), **grouped, **{("finding", f): [k] for f, k in at.items()}}


def metric_table(
    truth: np.ndarray,
    scores: np.ndarray,
    findings: Sequence[str],
    groups: Groups | None = None,
    decided: np.ndarray | None = None,
) -> pd.DataFrame:
    """Return the metrics of one arm with one seed: columns finding, metric, value.

    truth, scores, decided: [N,K]. Column finding: the name of each finding, "macro" (the mean over findings that have
    a value) and the name of each group.
    """
    truth, scores = np.asarray(truth, np.float64), np.asarray(scores)[None]
    given = None if decided is None else np.asarray(decided)[None]
    _checked(truth, len(findings), scores=scores, decided=given)
    computed = metrics_per_draw(truth, scores, np.ones((1, len(truth))), given)[:, 0, 0]
    rows = [
        {"finding": name, "metric": metric, "value": float(macro(values[columns]))}
        for (_, name), columns in _columns(findings, groups).items()
        for metric, values in zip(names(scores, given), computed, strict=True)
    ]
    return pd.DataFrame(rows)


def interval(
    truth: np.ndarray,
    scores: np.ndarray,
    patients: Sequence[str],
    findings: Sequence[str],
    *,
    groups: Groups | None = None,
    n_bootstrap: int = 2000,
    rng: np.random.Generator,
    decided: np.ndarray | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """Return the metrics of one arm, averaged over its seeds, with their intervals.

    truth: [N,K]; scores, decided: [S,N,K]; patients: [N]. Returns one row for each (level, name, metric) with columns
    value, low, high (within [0,1]), se, patients, reason.
    """
    truth, scores = np.asarray(truth, np.float64), np.asarray(scores)
    decided = None if decided is None else np.asarray(decided)
    _checked(truth, len(findings), patients, scores=scores, decided=decided)
    values = measured(truth, scores[None], None if decided is None else decided[None], patients, n_bootstrap, rng)
    rows: list[dict[str, object]] = []
    for (kind, name), columns in _columns(findings, groups).items():
        positive = positive_patients(truth[:, columns], patients)
        for m, metric in enumerate(values.metrics):
            point = macro(values.point[m, 0][:, columns])
            seen = spread(point, macro(values.drawn[m][..., columns]), values.noise, level, centred=True)
            ends = {"low": float(np.clip(seen.low, 0, 1)), "high": float(np.clip(seen.high, 0, 1)), "se": seen.se}
            why = missing(metric, truth[:, columns]) if np.isnan(point).any() else doubt(seen, FEWEST_PATIENTS)
            line = {"level": kind, "name": name, "metric": metric, "value": float(point.mean()), **ends}
            rows.append({**line, "patients": positive, "reason": why})
    return pd.DataFrame(rows)


def difference(
    truth: np.ndarray,
    scores: np.ndarray,
    control: np.ndarray,
    patients: Sequence[str],
    findings: Sequence[str],
    *,
    groups: Groups | None = None,
    n_bootstrap: int = 2000,
    rng: np.random.Generator,
    level: float = 0.95,
    decided: tuple[np.ndarray, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Return the difference `scores` - `control` in every metric, with its interval and verdict.

    truth: [N,K] in {0,1,NaN}; scores, control: [S,N,K], seed s of one paired with seed s of the other; patients: [N];
    groups: name -> its findings; decided: the decisions of both, [S,N,K] in {0,1,NaN}. Returns one row for each
    (level, name, metric), level being macro, group or finding, with columns value, control_value, difference, low, high
    (within [-1,1]; NaN if most draws hold no positive, or if the interval holds all of [-1,1]), se, df, p, p_holm (over
    findings; NaN for macro and groups), smallest (`power.smallest_gain`), patients (those positive for any of its
    findings), verdict, reason ("", or why there is no value or no evidence). Raises InputError for shapes that differ.
    """
    truth, scores, control = np.asarray(truth, np.float64), np.asarray(scores), np.asarray(control)
    both = None if decided is None else np.stack([np.asarray(one) for one in decided])
    first, second = (None, None) if both is None else both
    _checked(truth, len(findings), patients, scores=scores, control=control, decided=first, control_decided=second)
    values = measured(truth, np.stack([scores, control]), both, patients, n_bootstrap, rng)
    rows = []
    for (kind, name), columns in _columns(findings, groups).items():
        positive, known = positive_patients(truth[:, columns], patients), truth[:, columns]
        for m, metric in enumerate(values.metrics):
            point, drawn = macro(values.point[m][..., columns]), macro(values.drawn[m][..., columns])
            line = _line(metric, point, drawn, values.noise, level, positive, known)
            rows.append({"level": kind, "name": name, "metric": metric, **line})
    return _corrected(pd.DataFrame(rows))


def _line(
    metric: str,
    point: np.ndarray,
    drawn: np.ndarray,
    noise: np.ndarray,
    level: float,
    positive: int,
    truth: np.ndarray,
) -> dict[str, object]:
    """Return one row of `difference`.

    point: [2,S]; drawn: resampled differences [D,S]; noise: [D]; truth: [N,C] of the findings that are averaged.
    """
    lower, (value, control) = metric in LOWER_IS_BETTER, point.mean(1)
    seen = spread(point[0] - point[1], drawn, noise, level, lower, DIFFERENCE_RANGE)
    why = missing(metric, truth) if np.isnan(value) else doubt(seen, positive)
    ends = (-seen.high, -seen.low) if lower else (seen.low, seen.high)
    numbers = {"value": value, "control_value": control, "difference": value - control}
    numbers |= {"low": seen.low, "high": seen.high, "se": seen.se, "df": seen.df}
    numbers |= {"p": np.nan if why else seen.p, "p_holm": np.nan}
    numbers["smallest"] = np.nan if why else smallest_gain(seen.se, seen.df, level=level)
    verdict = "no evidence" if why else verdict_of(*ends)
    return {k: float(v) for k, v in numbers.items()} | {"patients": positive, "verdict": verdict, "reason": why}


def _corrected(rows: pd.DataFrame) -> pd.DataFrame:
    """Fill in `p_holm` of the findings, for each metric by itself."""
    for _, part in rows[rows["level"] == "finding"].groupby("metric", sort=False):
        rows.loc[part.index, "p_holm"] = holm(part["p"].to_numpy())
    return rows
