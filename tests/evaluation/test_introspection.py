"""Introspection: odds against a slow oracle, planted attributes found and others not, zones, ages, neighbours."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.evaluation.introspection import (
    age_band,
    describe,
    introspect,
    log_odds,
    most,
    nearest_real,
    occurrences,
    zones,
)
from medlt.types import InputError

COUNTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=2, max_size=6).filter(
    lambda rows: all(sum(row) for row in rows) and all(sum(row[i] for row in rows) for i in range(2))
)


@given(COUNTS, st.floats(0.5, 200))
@settings(max_examples=80)
def test_log_odds_are_the_published_ones(rows: list[tuple[int, int]], prior: float) -> None:
    delta, z = log_odds(*np.array(rows, dtype=float).T, prior)
    n = [sum(row[i] for row in rows) for i in range(2)]
    for w, (y1, y2) in enumerate(rows):
        a = prior * (y1 + y2) / sum(n)
        odds = [(y + a) / (total + prior - y - a) for y, total in zip((y1, y2), n, strict=True)]
        expected = math.log(odds[0]) - math.log(odds[1])
        assert delta[w] == pytest.approx(expected, abs=1e-9)
        assert z[w] == pytest.approx(expected / math.sqrt(1 / (y1 + a) + 1 / (y2 + a)), abs=1e-9)


def test_a_single_value_and_equal_groups_have_log_odds_of_zero() -> None:
    assert [part.tolist() for part in log_odds(np.array([7.0]), np.array([90.0]), 10)] == [[0.0], [0.0]]
    delta, _ = log_odds(np.array([10.0, 30.0]), np.array([100.0, 300.0]), 10)
    np.testing.assert_allclose(delta, 0, atol=1e-12)


def planted(n: int = 2000, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, list[str], list[str], np.ndarray]:
    """100 top images: AP views, Hernia and the left lower zone more often than elsewhere; sex and age alike."""
    rng = np.random.default_rng(seed)
    uids = [f"s{i}" for i in range(n)]
    top = np.arange(n) < 100
    share = np.where(top, 0.8, 0.3)
    labels = pd.DataFrame({"Hernia": rng.random(n) < share, "Effusion": rng.random(n) < 0.4}, index=uids).astype(float)
    labels.iloc[::9, 1] = np.nan
    about = pd.DataFrame({"view": np.where(rng.random(n) < share, "AP", "PA"), "sex": rng.choice(["F", "M"], n)}, uids)
    about["age"] = rng.integers(0, 100, n)
    maps = np.zeros((n, 6, 6))
    places = np.where(rng.random(n) < share, 5, rng.integers(0, 6, n))
    maps[np.arange(n), 2 * (places // 2), 4 * (places % 2)] = 1
    return labels, about, uids[:100], uids[100:], maps


@pytest.mark.parametrize("seed", range(3))
def test_planted_attributes_come_first_and_no_other_does(seed: int) -> None:
    labels, about, top, rest, maps = planted(seed=seed)
    table = introspect(describe(labels, about, maps), top, rest)
    more = {(row.attribute, row.value) for row in table.itertuples() if row.z > 4}
    assert more == {("view", "AP"), ("location", "left lower"), ("finding", "Hernia")}
    assert (table.loc[table["attribute"].isin(["sex", "age"]), "z"].abs() < 3.5).all()
    assert table["z"].is_monotonic_decreasing
    first = table.set_index(["attribute", "value"]).loc[("view", "AP")]
    assert first["share_top"] == (about.loc[top, "view"] == "AP").mean()
    assert first["share_rest"] == (about.loc[rest, "view"] == "AP").mean()
    assert first["top"] == (about.loc[top, "view"] == "AP").sum()
    has = table.set_index(["attribute", "value"]).loc[("finding", "Effusion")]
    assert has["share_top"] == (labels.loc[top, "Effusion"] == 1).mean()


def test_shuffled_groups_do_not_differ() -> None:
    """Under no difference z is close to a unit normal: its spread over many draws is near 1."""
    labels, about, _, _, maps = planted()
    known = describe(labels, about, maps)
    rng, found = np.random.default_rng(1), []
    for _ in range(20):
        uids = rng.permutation(labels.index)
        found += introspect(known, uids[:300], uids[300:], prior=5)["z"].tolist()
    assert np.std(found) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(("row", "third"), [(0, "upper"), (2, "upper"), (4, "middle"), (6, "lower"), (8, "lower")])
@pytest.mark.parametrize(("column", "side"), [(0, "right"), (3, "right"), (5, "left"), (8, "left")])
def test_zones_use_the_patients_sides(row: int, third: str, column: int, side: str) -> None:
    maps = np.zeros((2, 9, 9))
    maps[0, row, column] = 0.7
    assert zones(maps) == [f"{side} {third}", ""]


def test_the_centre_of_mass_decides() -> None:
    maps = np.zeros((1, 8, 8))
    maps[0, 0, 0], maps[0, 7, 7] = 1.0, 3.0
    assert zones(maps) == ["left lower"]
    maps[0, 7, 7] = -5.0
    assert zones(maps) == ["right upper"]


def test_ages_have_bands() -> None:
    given_ = [0, 17.9, 18, 40, 59, 60, 80, 101, "54", None, float("nan"), "1-5y", -3]
    bands = [age_band(age) for age in given_]
    assert bands[:5] == ["under 18", "under 18", "18-39", "40-59", "40-59"]
    assert bands[5:] == ["60-79", "80 and over", "80 and over", "40-59", "", "", "", ""]


@given(st.integers(1, 60), st.floats(0.01, 1), st.integers(0, 50))
@settings(max_examples=60)
def test_most_are_the_largest_that_passed(n: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    signal, passed = rng.normal(size=n).round(1), rng.random(n) < 0.7
    passed[rng.integers(n)] = True
    signal[rng.random(n) < 0.1] = np.nan
    usable = passed & np.isfinite(signal)
    if not usable.any():
        with pytest.raises(InputError, match="no image with a signal"):
            most(signal, passed, share)
        return
    chosen = most(signal, passed, share)
    assert chosen.sum() == max(1, round(share * usable.sum()))
    assert not (chosen & ~usable).any()
    assert signal[chosen].min() >= signal[usable & ~chosen].max(initial=-np.inf)


def test_nearest_against_a_double_loop() -> None:
    rng = np.random.default_rng(0)
    made, real = rng.normal(size=(7, 5)), rng.normal(size=(30, 5))
    uids = [f"r{i}" for i in range(30)]
    found = nearest_real(made, real, uids, 3)
    for i in range(7):
        away = [1 - made[i] @ row / np.linalg.norm(made[i]) / np.linalg.norm(row) for row in real]
        assert found[i].tolist() == [uids[j] for j in np.argsort(away)[:3]]
    assert nearest_real(made, real[:2], uids[:2], 3).shape == (7, 2)


def test_words_and_neighbours_are_attributes_too_and_a_value_counts_once_an_image() -> None:
    labels = pd.DataFrame({"Mass": [0.5, 0.49], "Nodule": [np.nan, 1.0]}, index=["a", "b"])
    about = pd.DataFrame({"view": ["AP", None], "age": [30, None]}, index=["a", "b"])
    known = describe(labels, about, near=np.array([["r1", "r2"], ["r1", "r1"]]), words=lambda uid: [uid, "tube", uid])
    rows = [tuple(row) for row in known.itertuples(index=False)]
    assert sorted(rows) == [
        ("a", "age", "18-39"), ("a", "finding", "Mass"), ("a", "nearest real", "r1"), ("a", "nearest real", "r2"),
        ("a", "view", "AP"), ("a", "word", "a"), ("a", "word", "tube"),
        ("b", "finding", "Nodule"), ("b", "nearest real", "r1"), ("b", "word", "b"), ("b", "word", "tube"),
    ]  # fmt: skip
    assert introspect(known, ["a"], ["b"]).shape[0] == 9
    assert introspect(occurrences({"view": ["", ""]}, ["a", "b"]), ["a"], ["b"]).empty


def test_bad_groups_and_shares_are_refused() -> None:
    known = occurrences({"view": ["AP", "PA"]}, ["a", "b"])
    for top, rest in ((["a"], []), (["a"], ["a", "b"])):
        with pytest.raises(InputError, match="groups overlap or one is empty"):
            introspect(known, top, rest)
    with pytest.raises(InputError, match="share is 0; give more than 0"):
        most(np.ones(3), np.ones(3, bool), 0)
