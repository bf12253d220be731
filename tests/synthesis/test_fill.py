"""The fill rule: every finding reaches its target, rows are used evenly, nothing is overshot needlessly."""

from collections import Counter
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlt.synthesis.fill import fill_targets
from medlt.types import InputError

NAMES = ["A", "B", "C", "Head"]


def table(*rows: str) -> pd.DataFrame:
    """One row a word: its letters are its findings, h the common one."""
    values = [[float(letter in word) for letter in "ABCh"] for word in rows]
    return pd.DataFrame(values, index=[f"u{i}" for i in range(len(rows))], columns=NAMES)


def got(labels: pd.DataFrame, chosen: list[tuple[str, str]]) -> dict[str, int]:
    return {name: int((labels.loc[[uid for _, uid in chosen], name] == 1).sum()) for name in NAMES}


@st.composite
def cases(draw: st.DrawFn) -> tuple[pd.DataFrame, dict[str, int], int]:
    """Up to 12 rows with 0, 1 or NaN, each finding in at least one of them; targets of up to 9."""
    values = st.sampled_from([0.0, 0.0, 1.0, np.nan])
    rows = draw(st.lists(st.tuples(values, values, values, values), min_size=1, max_size=8))
    every = [tuple(float(i == c) for i in range(4)) for c in range(3)]
    labels = pd.DataFrame([*rows, *every], columns=NAMES)
    labels.index = pd.Index([f"u{i:02d}" for i in range(len(labels))])
    return labels, {name: draw(st.integers(0, 9)) for name in "ABC"}, draw(st.integers(0, 99))


@settings(max_examples=40)
@given(cases())
def test_every_finding_reaches_its_target_by_rows_that_have_it(
    case: tuple[pd.DataFrame, dict[str, int], int],
) -> None:
    labels, need, seed = case
    chosen = fill_targets(labels, need, seed)
    reached = got(labels, chosen)
    assert all(reached[name] >= need[name] for name in "ABC")
    assert all(labels.at[uid, name] == 1 for name, uid in chosen)
    for i, (name, _) in enumerate(chosen):  # nothing is made for a finding that has enough
        assert got(labels, chosen[:i])[name] < need[name]


@settings(max_examples=40)
@given(cases())
def test_each_choice_is_the_best_by_the_rule_written_out(case: tuple[pd.DataFrame, dict[str, int], int]) -> None:
    """A slow loop over all rows: fewest overshot, then least used, then most helped; ties by any fixed order."""
    labels, need, seed = case
    used: Counter[str] = Counter()
    have = dict.fromkeys("ABC", 0)
    for name, uid in fill_targets(labels, need, seed):
        rank = {}
        for other in labels.index[labels[name] == 1]:
            carried = [c for c in "ABC" if labels.at[other, c] == 1]
            over = sum(have[c] >= need[c] for c in carried)
            rank[other] = (over, used[other], over - len(carried))
        assert rank[uid] == min(rank.values())
        used[uid] += 1
        for c in "ABC":
            have[c] += labels.at[uid, c] == 1


@settings(max_examples=40)
@given(st.lists(st.integers(0, 2), min_size=3, max_size=12), st.tuples(*[st.integers(0, 9)] * 3))
def test_one_label_a_row_is_the_published_rule(labels: list[int], wanted: tuple[int, int, int]) -> None:
    """Exactly N_t - n_c images of each class, its rows taken in turn."""
    rows = table(*["ABC"[c] for c in [0, 1, 2, *labels]])
    need = dict(zip("ABC", wanted, strict=True))
    chosen = fill_targets(rows, need, 0)
    assert Counter(name for name, _ in chosen) == Counter(need)
    for name in "ABC":
        times = Counter(uid for made_for, uid in chosen if made_for == name)
        turns = [times[uid] for uid in rows.index[rows[name] == 1]]
        assert max(turns) - min(turns) <= 1


def test_nothing_is_overshot_where_it_need_not_be() -> None:
    """A comes only with B: its three rows bring B's three along, and no image is made for B itself."""
    rows = table("AB", "B", "B", "B")
    assert fill_targets(rows, {"A": 3, "B": 3}, 0) == [("A", "u0")] * 3
    other = table("AB", "A", "B", "B")
    assert got(other, fill_targets(other, {"A": 5, "B": 1}, 0))["B"] == 1


def test_common_findings_are_neither_preferred_nor_avoided() -> None:
    """Rows with and without a common finding are used equally often."""
    rows = table("A", "Ah", "Ah", "A")
    assert Counter(uid for _, uid in fill_targets(rows, {"A": 8}, 1)) == Counter(dict.fromkeys(rows.index, 2))


def test_an_unknown_label_is_not_a_finding() -> None:
    rows = table("A", "A", "B")
    rows.loc["u1", "A"] = np.nan
    assert fill_targets(rows, {"A": 2, "B": 0}, 0) == [("A", "u0")] * 2


def test_the_seed_decides_among_equals_and_the_order_of_rows_does_not() -> None:
    rows = table(*["A"] * 6, *["AB"] * 3, "B")
    need = {"A": 4, "B": 2}
    chosen = {seed: fill_targets(rows, need, seed) for seed in range(6)}
    assert len({tuple(one) for one in chosen.values()}) > 1
    for seed, one in chosen.items():
        assert one == fill_targets(rows.iloc[::-1], dict(reversed(need.items())), seed)


def test_a_larger_target_begins_with_the_smaller_one() -> None:
    rows = table("A", "Ah", "AB", "B", "AC", "C", "C")
    for short, long in product(range(5), range(5, 9)):
        begun = fill_targets(rows, {"A": short}, 3)
        assert fill_targets(rows, {"A": long}, 3)[: len(begun)] == begun


def test_a_finding_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match="C has no positive train row"):
        fill_targets(table("A", "B"), {"A": 1, "C": 1}, 0)
    with pytest.raises(InputError, match="'D' is not a finding of the table"):
        fill_targets(table("A", "B"), {"D": 1}, 0)
    assert fill_targets(table("A", "B"), {"A": 0, "C": 0}, 0) == []
