"""Pair tail images with head images for fusion, by uid.

Elberg, Parra, Petrache, arXiv 2405.01705. A partner has no tail finding, is of another patient, has the same projection
(frontal or lateral, our addition), and is in the same fold as the tail image, so that a classifier trained without that
fold has seen neither parent.

| metric | partners |
|---|---|
| saliency | the k nearest among all partners, Euclidean, between A_c(tail image) and A_c'(partner) |
| confusing | the same among the partners with the head finding most confused with c |

c' is the partner's positive finding with the largest probability by the classifier on codes. The head finding most
confused with c has the largest mean probability over the images with c.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from medlt.data.views import projection
from medlt.localise.code_explainer import CodeExplainer
from medlt.names import no_finding
from medlt.types import InputError

PAIRS = 1 << 20
"""Number of pairs whose distance is in memory at a time."""
SLACK = 1e-9
"""Error of a squared distance by matrix product, as a share of the squared norms: more than double precision makes."""


def partner_mask(table: pd.DataFrame, tail: Sequence[str], healthy: str | None = None) -> np.ndarray:
    """Return the rows known to have no tail finding, bool [N]; unknown is absent only where label `healthy` is 1."""
    labels = table[list(tail)].to_numpy(float)
    normal = np.zeros(len(table), bool) if healthy is None else table[healthy].to_numpy(float) == 1
    return np.asarray(((labels == 0) | (np.isnan(labels) & normal[:, None])).all(1))


def nearest_allowed(
    queries: np.ndarray, candidates: np.ndarray, allowed: np.ndarray | PairRule, k: int
) -> np.ndarray:  # fmt: skip
    """Return the k nearest allowed candidates [N,D] of each query [Q,D], int64 [Q,k], nearest first.

    allowed: bool [Q,N], or rows of it by slices. Ties go to the earlier candidate; -1 stands for missing neighbours. A
    matrix product of squared distances leaves a few candidates, whose distances are computed from differences.
    """
    neighbours = np.full((len(queries), k), -1)
    queries, candidates = (np.asarray(one, np.float64) for one in (queries, candidates))
    size, step = np.einsum("nd,nd->n", candidates, candidates), max(1, PAIRS // max(1, len(candidates)))
    slack = SLACK * np.max(size, initial=0, where=np.isfinite(size))
    for start in range(0, len(queries) if len(candidates) else 0, step):
        part = queries[start : start + step]
        own = np.square(part).sum(1)[:, None]
        squared = np.where(allowed[start : start + step], own + size - 2 * part @ candidates.T, np.inf)
        last = min(k, len(candidates)) - 1
        within = np.partition(squared, last, axis=1)[:, [last]] + SLACK * own + slack
        for row, few in enumerate((squared <= within) & np.isfinite(squared)):
            near = np.flatnonzero(few)
            near = near[np.argsort(cdist(part[[row]], candidates[near])[0], kind="stable")[:k]]
            neighbours[start + row, : len(near)] = near
    return neighbours


def head_finding(labels: np.ndarray, scores: np.ndarray, no_finding: int | None = None) -> np.ndarray:
    """Return the positive finding of largest score, int64 [N]; -1 without a positive finding.

    labels: [N,K] 1/0/NaN; scores: [N,K] in [0,1]; no_finding: its column, which is returned only if no other finding is
    positive.
    """
    rank = np.where(labels == 1, scores, -np.inf)
    if no_finding is not None:
        rank[:, no_finding] -= np.where(labels[:, no_finding] == 1, 2.0, 0.0)
    return np.where((labels == 1).any(1), rank.argmax(1), -1)


def most_confusing(scores: np.ndarray, heads: Sequence[int]) -> int:
    """Return the head finding (column) of largest mean score over the images with the tail finding, scores [P,K]."""
    return int(heads[int(np.argmax(scores[:, list(heads)].mean(0)))])


@dataclass(frozen=True)
class Partners:
    """All possible head partners: their uids, sorted, the finding c' of each (-1: none), and its map [N,h*w]."""

    uids: tuple[str, ...]
    finding: np.ndarray
    maps: np.ndarray


def partners(
    table: pd.DataFrame, findings: Sequence[str], mask: np.ndarray, explainer: CodeExplainer, only: str | None = None
) -> Partners:
    """Return the rows of `mask` as partners; with `only`, those with that finding, which is then c'.

    Raises InputError if there is none.
    """
    rows = table[mask if only is None else mask & (table[only].to_numpy(float) == 1)].sort_index()
    if rows.empty:
        raise InputError("pairing: no train row is known to have no tail finding; lower targets.tail_below")
    uids = tuple(map(str, rows.index))
    names = list(findings)
    if only is None:
        none = no_finding(names)
        column = None if none is None else names.index(none)
        finding = head_finding(rows[names].to_numpy(float), explainer.scores_of(uids), column)
    else:
        finding = np.full(len(uids), names.index(only))
    return Partners(uids, finding, explainer.maps_of(uids, finding))


@dataclass(frozen=True, eq=False)
class PairRule:
    """Which heads each tail may be paired with: another patient, same fold, same projection.

    tails [Q,3] and heads [N,3]: fold, patient and projection as whole numbers. A slice of tails gives bool [q,N].
    """

    tails: np.ndarray
    heads: np.ndarray

    def __getitem__(self, part: slice) -> np.ndarray:
        """Return the allowed heads of some tails, bool [q,N]."""
        fold, patient, view = (self.tails[part, None, i] == self.heads[None, :, i] for i in range(3))
        return np.asarray(fold & ~patient & view)

    def counts(self) -> np.ndarray:
        """Return the number of allowed heads of each tail, int64 [Q], without comparing pairs."""
        every = Counter((fold, view) for fold, _, view in self.heads.tolist())
        same = Counter(map(tuple, self.heads.tolist()))
        return np.array([every[f, v] - same[f, p, v] for f, p, v in self.tails.tolist()], np.int64)


def pair_rule(table: pd.DataFrame, tails: Sequence[str], heads: Sequence[str]) -> PairRule:
    """Return which heads each tail may be paired with.

    A row of unknown view is paired only with rows of unknown view. Without a column `view`, all views are unknown.
    """
    both = table.loc[[*tails, *heads], [name for name in ("fold", "patient_id", "view") if name in table]]
    projections = [projection(view) for view in both["view"]] if "view" in both else [""] * len(both)
    keys = (both["fold"], both["patient_id"], pd.Series(projections))
    codes = np.stack([pd.factorize(key.to_numpy())[0] for key in keys], 1)
    return PairRule(codes[: len(tails)], codes[len(tails) :])
