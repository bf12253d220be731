"""Expected calibration error and the reliability curve of each finding.

In B bins of equal width, with w the weight of an example, p its probability and y its truth,

    ECE = sum_b |sum_{i in b} w_i (p_i - y_i)| / sum_i w_i

This is the binary form: it compares the probability of the finding with its rate, not the confidence of the likelier
class (Naeini et al. 2015; Guo et al., arXiv 1706.04599). Bin b is [b/B, (b+1)/B); the last one holds 1 too. Lower is
better. It is NaN without a positive, as all metrics are, and is not defined for scores outside [0,1].

The rate of a bin has Wilson's interval (1927). Its sample size is the effective number of independent images: r (1 - r)
over the variance of the rate between patients, at most the number of images, or the number of patients if all agree
(Franco et al., J. Survey Statistics and Methodology 7, 2019). So several findings or seeds of one image do not count as
several images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtri

from medlt.metrics.decisions import tally
from medlt.types import InputError

BINS = 15


def probabilities(scores: np.ndarray) -> bool:
    """Return whether all scores lie in [0,1]; NaN is ignored. Calibration is defined for such scores only."""
    return bool(((scores >= 0) & (scores <= 1) | np.isnan(scores)).all())


def binned(scores: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the bin, 0..bins-1, of each score in [0,1]."""
    index: np.ndarray = np.clip(np.searchsorted(np.arange(1, bins) / bins, scores, side="right"), 0, bins - 1)
    return index


def calibration_error(
    truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, owner: np.ndarray | None = None, bins: int = BINS
) -> np.ndarray:
    """Return the ECE under each draw, [D,K].

    truth: [N,K] in {0,1,NaN}; scores: [N,K] in [0,1]; weights: [D,O]; owner: [N], the column of `weights` that holds
    for each row. Without `owner`, row i has column i.
    """
    owner = np.arange(len(truth)) if owner is None else owner
    cells = [_cells(truth[:, k], scores[:, k], owner, weights.shape[1], bins) for k in range(truth.shape[1])]
    held = (weights @ np.hstack(cells)).reshape(len(weights), -1, bins + 2)  # one product: weights are copied for each
    negative, positive = held[..., bins], held[..., bins + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(positive > 0, np.abs(held[..., :bins]).sum(-1) / (negative + positive), np.nan)


def _cells(truth: np.ndarray, score: np.ndarray, owner: np.ndarray, owners: int, bins: int) -> np.ndarray:
    """Return the sum of p - y in each bin, the negatives and the positives of one finding, [owners,bins+2]."""
    known = ~np.isnan(truth)
    y, p, owner = truth[known], score[known].astype(np.float64), owner[known]
    missed = tally(owner, binned(p, bins), (owners, bins), p - y)
    return np.hstack([missed, tally(owner, y.astype(np.int64), (owners, 2))])


def wilson(rate: float, size: float, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a rate in `size` independent images; NaN if size is 0. `size` may be a fraction."""
    if not size > 0:
        return float("nan"), float("nan")
    z2 = float(ndtri((1 + level) / 2)) ** 2
    middle, half = rate + z2 / (2 * size), np.sqrt(z2 * (rate * (1 - rate) / size + z2 / (4 * size**2)))
    low, high = ((middle + side * half) / (1 + z2 / size) for side in (-1, 1))
    return float(max(0.0, low)), float(min(1.0, high))


def _worth(truth: np.ndarray, owner: np.ndarray, images: float) -> float:
    """Return the effective number of independent images in one bin: truth [n] in {0,1}, owner [n]."""
    _, own = np.unique(owner, return_inverse=True)
    patients, rate = int(own.max()) + 1, truth.mean()
    each = tally(own, truth.astype(np.int64), (patients, 2))
    if rate in (0, 1) or patients == 1:
        return float(patients)
    off = each[:, 1] - rate * each.sum(1)
    variance = patients / (patients - 1) * (off**2).sum() / len(truth) ** 2
    return float(min(images, rate * (1 - rate) / variance)) if variance > 0 else float(patients)


def reliability(
    truth: np.ndarray,
    scores: np.ndarray,
    patients: Sequence[str],
    findings: Sequence[str],
    *,
    bins: int = 10,
    level: float = 0.95,
) -> pd.DataFrame:
    """Return the reliability curve: one row for each finding and bin. The finding "all" pools all findings.

    truth: [N,K] in {0,1,NaN}; scores: in [0,1], [N,K], or [S,N,K] of several seeds, which are pooled; patients: [N].
    Columns: finding, bin, low, high (the limits of the bin), images (the mean over seeds; for "all", images times
    findings), mean_score, rate, rate_low, rate_high; the last four are NaN in an empty bin. Raises InputError for
    scores outside [0,1] or shapes that differ.
    """
    scores = _checked(np.asarray(scores, np.float64), truth, patients, len(findings))
    owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1]
    rows: list[dict[str, object]] = []
    for finding, chosen in [("all", slice(None)), *((f, slice(k, k + 1)) for k, f in enumerate(findings))]:
        part = scores[..., chosen]
        y, who = (np.broadcast_to(x, part.shape).ravel() for x in (truth[:, chosen], owner[:, None]))
        known = ~np.isnan(y)
        curve = _curve(y[known], part.ravel()[known], who[known], len(scores), bins, level)
        rows += [{"finding": finding, **line} for line in curve]
    return pd.DataFrame(rows)


def _checked(scores: np.ndarray, truth: np.ndarray, patients: Sequence[str], k: int) -> np.ndarray:
    """Return scores as [S,N,K]. Raises InputError unless shapes agree and scores lie in [0,1]."""
    scores = scores[None] if scores.ndim == 2 else scores
    if scores.shape[1:] != truth.shape or truth.shape[1:] != (k,) or len(patients) != len(truth):
        raise InputError(
            f"truth {truth.shape}, scores {scores.shape}, {len(patients)} patients; give [N,{k}], [N,{k}] and N"
        )
    if not probabilities(scores):
        raise InputError("a score is outside [0,1]; reliability needs probabilities: pass logits through a sigmoid")
    return scores


def _curve(
    y: np.ndarray, p: np.ndarray, owner: np.ndarray, seeds: int, bins: int, level: float
) -> Iterator[dict[str, float]]:
    """Yield one row for each bin: known truth y, probabilities p and owner, [n] over all seeds."""
    at = binned(p, bins)
    for b in range(bins):
        inside = at == b
        images, rate, score, ends = inside.sum() / seeds, np.nan, np.nan, (np.nan, np.nan)
        if images:
            rate, score = y[inside].mean(), p[inside].mean()
            ends = wilson(rate, _worth(y[inside], owner[inside], images), level)
        line = {"bin": b, "low": b / bins, "high": (b + 1) / bins, "images": images, "mean_score": score, "rate": rate}
        yield line | {"rate_low": ends[0], "rate_high": ends[1]}
