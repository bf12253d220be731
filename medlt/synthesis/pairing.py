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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from medlt.data.views import projection
from medlt.localise.code_explainer import CodeExplainer
from medlt.names import no_finding
from medlt.types import InputError

QUERIES = 64


def partner_mask(table: pd.DataFrame, tail: Sequence[str], healthy: str | None = None) -> np.ndarray:
    """Return the rows known to have no tail finding, bool [N]; unknown is absent only where label `healthy` is 1."""
    labels = table[list(tail)].to_numpy(float)
    normal = np.zeros(len(table), bool) if healthy is None else table[healthy].to_numpy(float) == 1
    return np.asarray(((labels == 0) | (np.isnan(labels) & normal[:, None])).all(1))


def nearest_allowed(queries: np.ndarray, candidates: np.ndarray, allowed: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest allowed candidates [N,D] of each query [Q,D], int64 [Q,k], nearest first.

    allowed: bool [Q,N]. Ties go to the earlier candidate; -1 stands for missing neighbours.
    """
    neighbours = np.full((len(queries), k), -1)
    for start in range(0, len(queries), QUERIES):
        part = slice(start, start + QUERIES)
        distance = np.where(allowed[part], cdist(queries[part], candidates), np.inf)
        order = np.argsort(distance, axis=1, kind="stable")[:, :k]
        near = np.where(np.isfinite(np.take_along_axis(distance, order, 1)), order, -1)
        neighbours[part, : order.shape[1]] = near
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


def allowed_pairs(table: pd.DataFrame, tails: Sequence[str], heads: Sequence[str]) -> np.ndarray:
    """Return which heads each tail may be paired with, bool [Q,N]: another patient, same fold, same projection.

    A row of unknown view is paired only with rows of unknown view. Without a column `view`, all views are unknown.
    """
    projections = [projection(view) for view in table["view"]] if "view" in table else ""
    keyed = table[["fold", "patient_id"]].assign(projection=projections)
    a, b = keyed.loc[list(tails)], keyed.loc[list(heads)]
    fold, patient, view = (a[c].to_numpy()[:, None] == b[c].to_numpy()[None] for c in keyed)
    return np.asarray(fold & ~patient & view)
