"""Do the probabilities mean what they say? Expected calibration error and the reliability curve of each finding.

In B bins of equal width, with w the weight of an example, p its probability and y its truth,

    ECE = sum_b |sum_{i in b} w_i (p_i - y_i)| / sum_i w_i

the binary form: the probability of the finding against its rate, not the confidence of the likelier answer (Naeini et
al. 2015; Guo et al., arXiv 1706.04599). Bin b is [b/B, (b+1)/B), the last one holds 1 too. Lower is better. It is NaN
without a positive, as all metrics are, and means nothing for scores outside [0,1].

The rate of a bin has Wilson's interval (1927) for as many independent images as its patients are worth: r (1 - r) over
the variance of the rate between patients, at most the images, or the patients where all agree (Franco et al., J. Survey
Statistics and Methodology 7, 2019). Several findings or seeds of one image are then not counted as several images.
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
    """Return whether all scores that are there lie in [0,1]: only then is there a calibration to speak of."""
    return bool(((scores >= 0) & (scores <= 1) | np.isnan(scores)).all())


def binned(scores: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return the bin, 0..bins-1, of each score in [0,1]."""
    found: np.ndarray = np.clip(np.searchsorted(np.arange(1, bins) / bins, scores, side="right"), 0, bins - 1)
    return found


def calibration_error(
    truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, owner: np.ndarray | None = None, bins: int = BINS
) -> np.ndarray:
    """Return ECE under each draw: truth [N,K] in {0,1,NaN}, scores [N,K] in [0,1], weights [D,O] -> [D,K].

    owner: [N], each row's column of `weights`, its own where absent.
    """
    owner = np.arange(len(truth)) if owner is None else owner
    cells = [_cells(truth[:, k], scores[:, k], owner, weights.shape[1], bins) for k in range(truth.shape[1])]
    held = (weights @ np.hstack(cells)).reshape(len(weights), -1, bins + 2)  # one product: weights are copied for each
    negative, positive = held[..., bins], held[..., bins + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(positive > 0, np.abs(held[..., :bins]).sum(-1) / (negative + positive), np.nan)


def _cells(truth: np.ndarray, score: np.ndarray, owner: np.ndarray, owners: int, bins: int) -> np.ndarray:
    """Return [owners,bins+2] of one finding [N]: the sum of p - y in each bin, the negatives, the positives."""
    known = ~np.isnan(truth)
    y, p, owner = truth[known], score[known].astype(np.float64), owner[known]
    missed = tally(owner, binned(p, bins), (owners, bins), p - y)
    return np.hstack([missed, tally(owner, y.astype(np.int64), (owners, 2))])


def wilson(rate: float, size: float, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a rate seen in `size` independent images, which need not be whole; NaN without one."""
    if not size > 0:
        return float("nan"), float("nan")
    z2 = float(ndtri((1 + level) / 2)) ** 2
    middle, half = rate + z2 / (2 * size), np.sqrt(z2 * (rate * (1 - rate) / size + z2 / (4 * size**2)))
    low, high = ((middle + side * half) / (1 + z2 / size) for side in (-1, 1))
    return float(max(0.0, low)), float(min(1.0, high))


def _worth(truth: np.ndarray, owner: np.ndarray, images: float) -> float:
    """Return independent images that one bin's are worth: truth [n] in {0,1}, owner [n]."""
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
    """Return the rate of the finding against mean score, a row each of finding and bin; finding "all" pools every one.

    truth: [N,K] in {0,1,NaN}; scores: [N,K] or, of several seeds that are pooled, [S,N,K], in [0,1]; patients: [N].
    Columns finding, bin, low, high (its limits), images (a mean over seeds; of "all" images times findings),
    mean_score, rate, rate_low, rate_high; the last four NaN in an empty bin. Raises InputError for other scores.
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
        raise InputError(f"truth {truth.shape}, scores {scores.shape}, {len(patients)} patients; need [N,{k}] and N")
    if not probabilities(scores):
        raise InputError("a score is outside [0,1]; reliability is of probabilities, pass logits through a sigmoid")
    return scores


def _curve(
    y: np.ndarray, p: np.ndarray, owner: np.ndarray, seeds: int, bins: int, level: float
) -> Iterator[dict[str, float]]:
    """Return a line a bin, of known truth y, probabilities p and owner, [n] over all seeds."""
    at = binned(p, bins)
    for b in range(bins):
        inside = at == b
        images, rate, score, ends = inside.sum() / seeds, np.nan, np.nan, (np.nan, np.nan)
        if images:
            rate, score = y[inside].mean(), p[inside].mean()
            ends = wilson(rate, _worth(y[inside], owner[inside], images), level)
        line = {"bin": b, "low": b / bins, "high": (b + 1) / bins, "images": images, "mean_score": score, "rate": rate}
        yield line | {"rate_low": ends[0], "rate_high": ends[1]}
