"""Agreement of independent classifiers with the labels of one source of synthetic images.

The evaluation classifiers are cross-fitted. Each real row is scored by the classifier that was not trained on its
patient (held_out), each image by a classifier that was trained on none of its parents (scores);
`medlt.checks.separation` enforces both. Each finding c has its own limit:

    limit_c(q) = the q-quantile of held-out probabilities for c over the real positives of c

| table | content |
|---|---|
| agreement | share of the images made for c, and of the real positives of c, that reach limit_c(q); real: about 1 - q |
| confusion | share of the images made for a that reach limit_b(q), and the same share of the real positives of a |
| filter_effect | images that pass the verifier's limit_c(q); share of them that the evaluation classifier accepts |

The real share is the reference: findings that occur together and tied scores lower it too, and are no error of the
images. Wilson intervals treat images as independent. Images of one parent are not, so the intervals are too narrow
where few parents have many images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from medlt.checks.consistency import thresholds
from medlt.metrics.calibration import wilson
from medlt.types import InputError

QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MEDIAN = 0.5
AGREEMENT = ("finding", "quantile", "limit", "real", "synthetic", "low", "high", "images", "accepted_images", "reason")
CONFUSION = ("label", "predicted", "share", "real_share", "images")
FILTER_EFFECT = ("finding", "quantile", "kept", "accepted_share", "low", "high", "real_reference")
NONE = float("nan")
Row = dict[str, Any]


def agreement(
    held_out: pd.DataFrame,
    labels: pd.DataFrame,
    scores: pd.DataFrame,
    made_for: pd.Series,
    quantiles: Sequence[float] = QUANTILES,
) -> pd.DataFrame:
    """Return the columns AGREEMENT for each finding that images were made for, and for "all", at each quantile.

    held_out, scores: uid x finding, probabilities of real rows and of images, NaN where unknown; labels: uid x finding
    of the real rows, 1 / 0 / NaN; made_for: uid -> finding of each image. `images` counts the images with a score,
    `accepted_images` those of them that reach the limit. "all" compares every image with the limit of its own finding;
    its `real` weights findings as the images do. `reason` is "" or explains a missing number.

    Raises InputError if an image has no score, or a finding or a real row lacks data.
    """
    wanted = _made_for(held_out, labels, scores, made_for)
    rows = []
    for quantile in quantiles:
        limits = thresholds(held_out, labels, quantile)
        made = [_agreement(held_out, labels, scores[wanted == name], name, limits[name]) for name in _names(wanted)]
        rows += [row | {"quantile": quantile} for row in (*made, _pooled(made))]
    return pd.DataFrame(rows, columns=list(AGREEMENT))


def _made_for(held_out: pd.DataFrame, labels: pd.DataFrame, scores: pd.DataFrame, made_for: pd.Series) -> pd.Series:
    """Return the finding of each scored image, in the order of `scores`, as a category in the order of findings."""
    findings = list(scores.columns)
    if list(held_out.columns) != findings:
        raise InputError(
            f"real rows have scores of {list(held_out.columns)}, images of {findings}; use the same findings in both"
        )
    if strange := sorted(set(made_for) - set(findings)):
        raise InputError(f"images are made for {strange[0]!r}, which has no scores; score it too")
    if len(lost := scores.index.symmetric_difference(made_for.index)):
        raise InputError(f"image {lost[0]!r} (of {len(lost)}) lacks scores or a finding; score the whole source")
    if len(lost := held_out.index.difference(labels.index)):
        raise InputError(f"real row {lost[0]!r} (of {len(lost)}) has no labels; give labels of all scored rows")
    return made_for.loc[scores.index].astype(pd.CategoricalDtype(findings))


def _names(made_for: pd.Series) -> list[str]:
    """Return the findings that images were made for, in the order of findings."""
    return list(made_for.cat.remove_unused_categories().cat.categories)


def _agreement(held_out: pd.DataFrame, labels: pd.DataFrame, scores: pd.DataFrame, finding: str, limit: float) -> Row:
    """Return the row of one finding at one quantile; scores: of the images made for it."""
    real = _reaching(held_out.loc[_positive(held_out, labels, finding), finding], limit)
    made = _reaching(scores[finding], limit)
    reason = "" if len(made) else f"no image made for {finding} has a score"
    if not len(real):
        reason = f"no real positive of {finding} has a score, so there is no limit"
    return {"finding": finding, "limit": limit, "reason": reason, **_counted(made, _share(real))}


def _positive(held_out: pd.DataFrame, labels: pd.DataFrame, finding: str) -> pd.Index:
    """Return uids of the scored real rows that are positive for the finding."""
    return held_out.index[labels.loc[held_out.index, finding] == 1]


def _reaching(scores: pd.Series, limit: float) -> pd.Series:
    """Return whether each known score reaches the limit; empty without a limit."""
    return (scores.iloc[:0] if np.isnan(limit) else scores.dropna()) >= limit


def _share(reached: pd.Series) -> float:
    return float(reached.mean()) if len(reached) else NONE


def _counted(reached: pd.Series, real: float) -> Row:
    """Return the share of images that reach the limit, its interval and counts, and the real share."""
    return {"real": real, **_interval(len(reached), int(reached.sum()))}


def _interval(images: int, kept: int) -> Row:
    share = kept / images if images else NONE
    low, high = wilson(share, images)
    return {"synthetic": share, "low": low, "high": high, "images": images, "accepted_images": kept}


def _pooled(rows: Sequence[Row]) -> Row:
    """Return the row "all" over findings that have a real share; it weights findings as the images do."""
    held = [row for row in rows if row["images"] and not np.isnan(row["real"])]
    images, kept = (sum(row[name] for row in held) for name in ("images", "accepted_images"))
    real = sum(row["real"] * row["images"] for row in held) / images if images else NONE
    reason = "" if images else "no finding of these images has both a limit and scores"
    return {"finding": "all", "real": real, "reason": reason, **_interval(images, kept)}


def confusion(
    held_out: pd.DataFrame,
    labels: pd.DataFrame,
    scores: pd.DataFrame,
    made_for: pd.Series,
    quantile: float = MEDIAN,
) -> pd.DataFrame:
    """Return the columns CONFUSION: each finding that images were made for, by every finding predicted in them.

    Arguments and errors as for `agreement`. images: images made for `label` with a score of `predicted`. Shares are NaN
    where `predicted` has no limit or no image has a score. An image may show several findings, so the shares of one
    label need not sum to 1.
    """
    wanted = _made_for(held_out, labels, scores, made_for)
    limits, rows = thresholds(held_out, labels, quantile), []
    for a in _names(wanted):
        real, made = held_out.loc[_positive(held_out, labels, a)], scores[wanted == a]
        for b in scores.columns:
            reached, reference = (_reaching(table[b], limits[b]) for table in (made, real))
            rows.append((a, b, _share(reached), _share(reference), len(reached)))
    return pd.DataFrame(rows, columns=list(CONFUSION))


def filter_effect(
    verifier_held_out: pd.DataFrame,
    held_out: pd.DataFrame,
    labels: pd.DataFrame,
    verified: pd.Series,
    scores: pd.DataFrame,
    made_for: pd.Series,
    quantiles: Sequence[float] = (0.0, *QUANTILES),
) -> pd.DataFrame:
    """Return the columns FILTER_EFFECT for each finding and for "all", at each quantile of the verifiers' limit.

    verifier_held_out, held_out: probabilities, uid x finding, of the same real rows by the verifiers and by the
    evaluation classifiers; verified: uid -> the verifier's probability of each image's own finding; scores: the
    evaluation classifiers' probabilities of all findings. kept: number of images that pass the verifier;
    accepted_share: share of those that reach the evaluation classifier's median limit; real_reference: the same share
    of the real positives that pass the verifier. Quantile 0 keeps all images; otherwise images without a score do not
    pass. Images that a run has kept already passed the run's own quantile.

    Raises InputError as `agreement` does, and if verifiers and evaluation classifiers scored different rows.
    """
    wanted = _made_for(held_out, labels, scores, made_for)
    _require_same_rows(verifier_held_out.index, held_out.index)
    _require_same_rows(verified.index, scores.index)
    accepts, rows = thresholds(held_out, labels, MEDIAN), []

    def row_of(name: str, limit: float) -> Row:
        kept = _passed(verified.loc[scores.index[wanted == name]], limit)
        real = _passed(verifier_held_out.loc[_positive(verifier_held_out, labels, name), name], limit)
        reached, reference = (_reaching(t.loc[u, name], accepts[name]) for t, u in ((scores, kept), (held_out, real)))
        return {"finding": name, "kept": len(kept), **_counted(reached, _share(reference))}

    for quantile in quantiles:
        limits = thresholds(verifier_held_out, labels, quantile) if quantile else dict.fromkeys(scores.columns, -np.inf)
        made = [row_of(name, limits[name]) for name in _names(wanted)]
        whole = _pooled(made) | {"kept": sum(row["kept"] for row in made)}
        rows += [row | {"quantile": quantile} for row in (*made, whole)]
    names = {"synthetic": "accepted_share", "real": "real_reference"}
    return pd.DataFrame(rows).rename(columns=names)[list(FILTER_EFFECT)]


def _require_same_rows(verifiers: pd.Index, evaluation: pd.Index) -> None:
    """Raise InputError unless verifiers and evaluation classifiers scored the same uids."""
    if len(lost := verifiers.symmetric_difference(evaluation)):
        raise InputError(
            f"{lost[0]!r} (of {len(lost)}) has scores of the verifiers or of the evaluation classifiers only; "
            "score the same rows with both"
        )


def _passed(scores: pd.Series, limit: float) -> pd.Index:
    """Return uids that pass a verifier: all if the limit is minus infinity, none if it is NaN."""
    return scores.index if np.isneginf(limit) else scores.index[scores >= limit]


def mask_unobserved(scores: pd.DataFrame, classifier: pd.Series, labels: pd.DataFrame, fold: pd.Series) -> pd.DataFrame:
    """Return probabilities, NaN where the training rows of the classifier lack positives or negatives of the finding.

    scores: uid x finding, of real rows or images; classifier: uid -> number of the classifier that scored it; labels:
    uid x finding of the train rows; fold: uid -> number of the classifier that was trained without the row.
    """
    known = labels.loc[fold.index, list(scores.columns)]
    out = scores.copy()
    for k in classifier.unique():
        seen = known[(fold != k).to_numpy()]
        unobserved = ~((seen == 1).any() & (seen == 0).any())
        out.loc[(classifier.loc[scores.index] == k).to_numpy(), unobserved.to_numpy()] = NONE
    return out
