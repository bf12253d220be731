"""Subfolders: no folder beyond the limit, small collections flat, and places that depend on names alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.folders import MOST_FILES, digits_for, subfolder, subfolders

NAMES = st.sets(st.text(min_size=1, max_size=12), max_size=300)


@given(names=NAMES, limit=st.integers(1, 40))
def test_no_subfolder_holds_more_than_the_limit(names: set[str], limit: int) -> None:
    inside = subfolders(sorted(names), limit)
    assert inside.keys() == names
    assert max(Counter(inside.values()).values(), default=0) <= limit
    if len(names) < limit:
        assert set(inside.values()) <= {""}
    else:
        assert "" not in inside.values()


@given(names=NAMES, limit=st.integers(1, 40), order=st.randoms(use_true_random=False))
def test_places_do_not_depend_on_the_order(names: set[str], limit: int, order: object) -> None:
    shuffled = sorted(names)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert subfolders(shuffled, limit) == subfolders(sorted(names), limit)


@given(name=st.text(), digits=st.integers(0, 12))
def test_no_name_leads_elsewhere(name: str, digits: int) -> None:
    parts = subfolder(name, digits).split("/")
    assert parts.pop() == ""
    assert sum(len(part) for part in parts) == digits
    assert all(1 <= len(part) <= 3 and set(part) <= set("0123456789abcdef") for part in parts)


def test_a_million_files() -> None:
    digits = digits_for(1_000_000)
    counts = Counter(subfolder(f"uid-{number}", digits) for number in range(1_000_000))
    assert max(counts.values()) <= MOST_FILES
    assert digits_for(MOST_FILES - 1) == 0
    assert digits_for(MOST_FILES) == 1
    assert [digits_for(10**power) for power in (3, 5, 6, 7, 8)] == [0, 2, 2, 3, 4]


def test_the_limit_itself() -> None:
    names = [str(number) for number in range(MOST_FILES)]
    assert set(subfolders(names[:-1]).values()) == {""}  # with a table beside them, exactly the limit
    assert max(Counter(subfolders(names).values()).values()) < MOST_FILES


@pytest.mark.parametrize(("names", "limit"), [(["a"], 0), (["a", "a"], 5)])
def test_what_cannot_be_placed(names: list[str], limit: int) -> None:
    with pytest.raises(ValueError, match="each name once"):
        subfolders(names, limit)
