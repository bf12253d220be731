"""Do synthetic images show what they were made for? One source seen by judges that had no part in making it.

The judges are cross-fitted: a real row is judged by the one that did not see its patient (held_out), an image by one
that saw neither of its parents (scores); `medlt.checks.apart` holds both. Each finding c has a limit of its own:

    limit_c(q) = the q-quantile of held-out probabilities for c over the real positives of c

| table | what it says |
|---|---|
| agreement | share of the images made for c, and of the real positives of c, that reach limit_c(q); real: about 1 - q |
| confusion | share of the images made for a that reach limit_b(q), beside the same of the real positives of a |
| filtering | of the images that reach limit_c(q) of judge B: how many, and what share reaches limit_c(1/2) of judge C |

The real share beside each keeps what is so in patients too (findings that occur together, scores that tie) from being
taken for an error of the images. Images of one parent are not independent, which Wilson's intervals do not know: where
few parents made many images they are too narrow.
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
AGREEMENT = ("finding", "quantile", "limit", "real", "synthetic", "low", "high", "images", "asserted_kept", "reason")
CONFUSION = ("asserted", "judged", "share", "real_share", "images")
FILTERING = ("finding", "quantile", "kept", "accepted_by_reporter", "low", "high", "real_reference")
NONE = float("nan")
Row = dict[str, Any]


def agreement(
    held_out: pd.DataFrame,
    labels: pd.DataFrame,
    scores: pd.DataFrame,
    made_for: pd.Series,
    quantiles: Sequence[float] = QUANTILES,
) -> pd.DataFrame:
    """Columns AGREEMENT, for each finding that images were made for, and for "all", at each quantile.

    held_out, scores: uid x finding, probabilities of real rows and of images, NaN where a judge cannot tell; labels:
    uid x finding of the real rows, 1 / 0 / NaN; made_for: uid -> finding of each image. `images` are those a judge
    could tell of, `asserted_kept` how many of them reach the limit. "all" holds every image against the limit of its
    own finding; its `real` weighs findings as the images do. Where there is no number `reason` says why.

    Raises InputError for an image that was not judged, a finding or a real row of which something is missing.
    """
    wanted = _made_for(held_out, labels, scores, made_for)
    rows = []
    for quantile in quantiles:
        limits = thresholds(held_out, labels, quantile)
        made = [_agreement(held_out, labels, scores[wanted == name], name, limits[name]) for name in _names(wanted)]
        rows += [row | {"quantile": quantile} for row in (*made, _pooled(made))]
    return pd.DataFrame(rows, columns=list(AGREEMENT))


def _made_for(held_out: pd.DataFrame, labels: pd.DataFrame, scores: pd.DataFrame, made_for: pd.Series) -> pd.Series:
    """The finding of each judged image, in their order, as a category in the order of findings."""
    findings = list(scores.columns)
    if list(held_out.columns) != findings:
        raise InputError(
            f"judges speak of {list(held_out.columns)} in real rows, of {findings} in images; use the same"
        )
    if strange := sorted(set(made_for) - set(findings)):
        raise InputError(f"images are made for {strange[0]!r}, which the judge does not know; judge it too")
    if len(lost := scores.index.symmetric_difference(made_for.index)):
        raise InputError(f"image {lost[0]!r} (of {len(lost)}) is not both made and judged; judge the whole source")
    if len(lost := held_out.index.difference(labels.index)):
        raise InputError(f"real row {lost[0]!r} (of {len(lost)}) has no labels; give those of all judged rows")
    return made_for.loc[scores.index].astype(pd.CategoricalDtype(findings))


def _names(made_for: pd.Series) -> list[str]:
    """Findings that images were made for, in the order of findings."""
    return list(made_for.cat.remove_unused_categories().cat.categories)


def _agreement(held_out: pd.DataFrame, labels: pd.DataFrame, scores: pd.DataFrame, finding: str, limit: float) -> Row:
    """One finding at one quantile; scores: of the images made for it."""
    real = _reaching(held_out.loc[_positive(held_out, labels, finding), finding], limit)
    made = _reaching(scores[finding], limit)
    reason = "" if len(made) else f"no judge could tell {finding} in these images"
    if not len(real):
        reason = f"no real positive of {finding} that a judge could tell, so there is no limit"
    return {"finding": finding, "limit": limit, "reason": reason, **_counted(made, _share(real))}


def _positive(held_out: pd.DataFrame, labels: pd.DataFrame, finding: str) -> pd.Index:
    """Uids of the judged real rows known to have the finding."""
    return held_out.index[labels.loc[held_out.index, finding] == 1]


def _reaching(scores: pd.Series, limit: float) -> pd.Series:
    """Whether each known score reaches the limit; without a limit none is known."""
    return (scores.iloc[:0] if np.isnan(limit) else scores.dropna()) >= limit


def _share(reached: pd.Series) -> float:
    return float(reached.mean()) if len(reached) else NONE


def _counted(reached: pd.Series, real: float) -> Row:
    """Share of images that reached, its interval and counts, beside the real share."""
    return {"real": real, **_interval(len(reached), int(reached.sum()))}


def _interval(images: int, kept: int) -> Row:
    share = kept / images if images else NONE
    low, high = wilson(share, images)
    return {"synthetic": share, "low": low, "high": high, "images": images, "asserted_kept": kept}


def _pooled(rows: Sequence[Row]) -> Row:
    """The row "all": images of findings that have a real share, which weighs findings as the images do."""
    held = [row for row in rows if row["images"] and not np.isnan(row["real"])]
    images, kept = (sum(row[name] for row in held) for name in ("images", "asserted_kept"))
    real = sum(row["real"] * row["images"] for row in held) / images if images else NONE
    reason = "" if images else "no finding of these images has a limit and a judge that could tell"
    return {"finding": "all", "real": real, "reason": reason, **_interval(images, kept)}


def confusion(
    held_out: pd.DataFrame,
    labels: pd.DataFrame,
    scores: pd.DataFrame,
    made_for: pd.Series,
    quantile: float = MEDIAN,
) -> pd.DataFrame:
    """Columns CONFUSION: each finding that images were made for, by every finding they may be judged to show.

    Arguments and errors as of `agreement`. images: those made for a that were judged for b; NaN where b has no limit or
    nothing was judged. An image may show several findings, so shares of one a need not sum to 1.
    """
    wanted = _made_for(held_out, labels, scores, made_for)
    limits, rows = thresholds(held_out, labels, quantile), []
    for a in _names(wanted):
        real, made = held_out.loc[_positive(held_out, labels, a)], scores[wanted == a]
        for b in scores.columns:
            reached, reference = (_reaching(table[b], limits[b]) for table in (made, real))
            rows.append((a, b, _share(reached), _share(reference), len(reached)))
    return pd.DataFrame(rows, columns=list(CONFUSION))


def filtering(
    verifying: pd.DataFrame,
    reporting: pd.DataFrame,
    labels: pd.DataFrame,
    verified: pd.Series,
    scores: pd.DataFrame,
    made_for: pd.Series,
    quantiles: Sequence[float] = (0.0, *QUANTILES),
) -> pd.DataFrame:
    """Columns FILTERING, for each finding that images were made for, and for "all", at each quantile of the verifier.

    verifying, reporting: held-out probabilities, uid x finding, by judges B and C of the same real rows; verified:
    uid -> B's probability of each image's own finding; scores: C's of all findings. kept: images that B lets pass;
    accepted_by_reporter: the share of those that reach C's median limit; real_reference: the same of the real positives
    that B lets pass. Quantile 0 keeps all; else what B cannot tell does not pass. Images that a run has kept passed its
    own quantile already. Raises InputError as `agreement` does, and where B and C differ in rows.
    """
    wanted = _made_for(reporting, labels, scores, made_for)
    for one, other in ((verifying.index, reporting.index), (verified.index, scores.index)):
        if len(lost := one.symmetric_difference(other)):
            raise InputError(f"{lost[0]!r} (of {len(lost)}) was judged in one role only; let both judge the same")
    accepts, rows = thresholds(reporting, labels, MEDIAN), []
    for quantile in quantiles:
        limits = thresholds(verifying, labels, quantile) if quantile else dict.fromkeys(scores.columns, -np.inf)
        made = []
        for name in _names(wanted):
            kept = _passed(verified.loc[scores.index[wanted == name]], limits[name])
            real = _passed(verifying.loc[_positive(verifying, labels, name), name], limits[name])
            reached, reference = (
                _reaching(t.loc[u, name], accepts[name]) for t, u in ((scores, kept), (reporting, real))
            )
            made.append({"finding": name, "kept": len(kept), **_counted(reached, _share(reference))})
        whole = _pooled(made) | {"kept": sum(row["kept"] for row in made)}
        rows += [row | {"quantile": quantile} for row in (*made, whole)]
    names = {"synthetic": "accepted_by_reporter", "real": "real_reference"}
    return pd.DataFrame(rows).rename(columns=names)[list(FILTERING)]


def _passed(scores: pd.Series, limit: float) -> pd.Index:
    """Uids that a verifier lets pass: all at minus infinity, else those that reach a limit there is."""
    return scores.index if np.isneginf(limit) else scores.index[scores >= limit]


def sighted(scores: pd.DataFrame, judge: pd.Series, labels: pd.DataFrame, fold: pd.Series) -> pd.DataFrame:
    """Probabilities, NaN where the judge that gave them never saw the finding both present and absent.

    scores: uid x finding, of real rows or images; judge: uid -> number of its judge; labels: uid x finding of the train
    rows, and fold: uid -> the number of the judge that was trained without the row.
    """
    known = labels.loc[fold.index, list(scores.columns)]
    out = scores.copy()
    for k in judge.unique():
        seen = known[(fold != k).to_numpy()]
        blind = ~((seen == 1).any() & (seen == 0).any())
        out.loc[(judge.loc[scores.index] == k).to_numpy(), blind.to_numpy()] = NONE
    return out
