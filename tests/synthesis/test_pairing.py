"""Neighbours against a double loop; the rules for partners."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

from medlt.data.manifest import Manifest
from medlt.data.views import projection
from medlt.rng import numpy_generator
from medlt.synthesis.pairing import (
    head_finding,
    most_confusing,
    nearest_allowed,
    pair_rule,
    partner_mask,
)
from medlt.synthesis.plan import TrainTable

NAN = float("nan")


def slow(queries: np.ndarray, candidates: np.ndarray, allowed: np.ndarray, k: int) -> list[list[int]]:
    """The k nearest allowed candidates of each query by looking at every pair."""
    found = []
    for i, query in enumerate(queries):
        ranked = []
        for j, candidate in enumerate(candidates):
            if allowed[i, j]:
                ranked.append((sum((q - c) ** 2 for q, c in zip(query, candidate, strict=True)), j))
        near = [j for _, j in sorted(ranked)[:k]]
        found.append(near + [-1] * (k - len(near)))
    return found


@settings(max_examples=60)
@given(st.data())
def test_neighbours_equal_a_double_loop(data: st.DataObject) -> None:
    q, n, d, k = (data.draw(st.integers(1, high)) for high in (70, 9, 4, 4))
    whole = st.integers(-3, 3).map(float)  # whole numbers: sums are exact, so ties are ties
    queries, candidates = (
        data.draw(arrays(float, (q, d), elements=whole)),
        data.draw(arrays(float, (n, d), elements=whole)),
    )
    allowed = data.draw(arrays(bool, (q, n)))
    assert nearest_allowed(queries, candidates, allowed, k).tolist() == slow(queries, candidates, allowed, k)


def every_distance(queries: np.ndarray, candidates: np.ndarray, allowed: np.ndarray, k: int) -> np.ndarray:
    """All distances, each from differences, and a stable sort of them."""
    distance = np.where(allowed, cdist(queries, candidates), np.inf)
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    near = np.where(np.isfinite(np.take_along_axis(distance, order, 1)), order, -1)
    return np.pad(near, ((0, 0), (0, k - near.shape[1])), constant_values=-1)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 999), n=st.integers(1, 60), k=st.integers(1, 20), pairs=st.sampled_from([1, 100, 1 << 22]),
    zero=st.floats(0, 1), far=st.sampled_from([0.0, 1e3, 1e7]),
)  # fmt: skip
def test_neighbours_are_those_of_all_distances(seed: int, n: int, k: int, pairs: int, zero: float, far: float) -> None:
    """With empty maps, equal maps, a common offset that a matrix product rounds away, and a map that is not finite."""
    draw = numpy_generator("pairing", seed)
    queries, candidates = (draw.random((rows, 16)) for rows in (13, n))
    candidates[draw.random(n) < zero] = 0
    candidates[draw.integers(n)] = candidates[draw.integers(n)]
    queries, candidates = queries + far, candidates + far
    allowed = draw.random((13, n)) < 0.8
    expected = every_distance(queries, candidates, allowed, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medlt.synthesis.pairing.PAIRS", pairs)
        np.testing.assert_array_equal(nearest_allowed(queries, candidates, allowed, k), expected)
        candidates[0] = np.nan
        allowed[:, 0] = False
        expected = every_distance(queries, candidates, allowed, k)
        np.testing.assert_array_equal(nearest_allowed(queries, candidates, allowed, k), expected)


def test_partners_have_no_tail_finding() -> None:
    table = pd.DataFrame(
        {"A": [0, 1, 0, NAN, NAN, 0], "B": [0, 0, 1, 0, NAN, NAN], "No Finding": [0, 0, 0, 1, 0, 1.0]},
        index=list("uvwxyz"),
    )
    assert partner_mask(table, ["A", "B"], "No Finding").tolist() == [True, False, False, True, False, True]
    assert partner_mask(table, ["A", "B"]).tolist() == [True, False, False, False, False, False]


def test_the_finding_of_a_partner_is_its_most_probable_one() -> None:
    labels = np.array([[1, 1, 0], [0, 0, 1], [1, 0, 1], [0, NAN, 0]])
    scores = np.array([[0.2, 0.3, 0.9], [0.9, 0.8, 0.1], [0.1, 0.5, 0.9], [0.9, 0.9, 0.9]])
    assert head_finding(labels, scores).tolist() == [1, 2, 2, -1]
    assert head_finding(labels, scores, no_finding=2).tolist() == [1, 2, 0, -1]


def test_most_confusing_is_the_head_of_largest_mean_score() -> None:
    scores = np.array([[0.9, 0.2, 0.6], [0.9, 0.8, 0.3]])
    assert most_confusing(scores, [1, 2]) == 1
    assert most_confusing(scores, [2]) == 2


@pytest.mark.parametrize("name", ["No Finding", "No_Finding", "no-finding", "NoFinding", "Normal", "normal", "Hernia"])
def test_manifest_and_plan_have_one_definition_of_no_finding(name: str) -> None:
    """A partner with unknown tail labels counts as healthy if its no-finding label, however spelt, is 1."""
    findings = ("Mass", name) if name != "Hernia" else ("Mass", "Hernia")
    labels = pd.DataFrame({"Mass": [1, NAN, 0, NAN], findings[1]: [0, 1, 0, 0]}, index=list("abcd"), dtype=float)
    table = labels.assign(path="x.png", patient_id=list("pqrs"), split="train", view=None, fold=0)
    train = TrainTable(table, findings, ("Mass",))
    assert train.no_finding == Manifest(table, findings, Path()).no_finding == (None if name == "Hernia" else name)
    pool = table.index[partner_mask(table, train.tail, train.no_finding)]
    assert list(pool) == (["c"] if name == "Hernia" else ["b", "c"])


@pytest.mark.parametrize(
    ("view", "name"),
    [
        ("PA", "frontal"),
        ("AP", "frontal"),
        ("Frontal", "frontal"),
        ("LATERAL", "lateral"),
        ("LL", "lateral"),
        (" rl ", "lateral"),
        ("LLO", "LLO"),
        ("", ""),
        (None, ""),
        (NAN, ""),
        (pd.NA, ""),
    ],
)
def test_projections(view: object, name: str) -> None:
    assert projection(view) == name


def rows(**columns: list[object]) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    table = pd.DataFrame({"fold": [0] * n, "patient_id": [f"p{i}" for i in range(n)]} | columns)
    return table.set_index(pd.Index(list("uvwxyz")[:n], name="uid"))


@pytest.mark.parametrize("kind", ["object", "category", "string"])
def test_a_partner_has_the_same_projection(kind: str) -> None:
    table = rows(view=["PA", "LATERAL", "AP", None, None, "LL"]).astype({"view": kind})
    uids = list(table.index)
    groups = ["f", "l", "f", "?", "?", "l"]
    expected = [[a != b and groups[i] == groups[j] for j, b in enumerate(uids)] for i, a in enumerate(uids)]
    assert pair_rule(table, uids, uids)[:].tolist() == expected
    assert pair_rule(table, ["v"], ["z", "u"])[:].tolist() == [[True, False]]


def test_a_partner_is_another_patient_of_the_same_fold() -> None:
    table = rows(fold=[0, 0, 1, 0], patient_id=["p", "q", "r", "p"])
    assert pair_rule(table, ["u"], list("vwx"))[:].tolist() == [[True, False, False]]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.sampled_from(["PA", "LL", None])), min_size=2))
def test_allowed_heads_are_counted_without_pairs(given_: list[tuple[int, int, str | None]]) -> None:
    table = pd.DataFrame(given_, columns=["fold", "patient_id", "view"])
    table.index = pd.Index([f"u{i}" for i in range(len(table))], name="uid")
    half = len(table) // 2
    rule = pair_rule(table, list(table.index[:half]), list(table.index[half:]))
    assert rule.counts().tolist() == rule[:].sum(1).tolist()
