"""Head, medium and tail by cut-offs, or by thirds in a small set."""

from hypothesis import given
from hypothesis import strategies as st

from medlt.metrics.groups import GROUPS, group

COUNTS = st.dictionaries(st.sampled_from("abcdefghijklmnop"), st.integers(0, 5000), min_size=1, max_size=16)


def test_published_cut_offs() -> None:
    found = group({"a": 1001, "b": 1000, "c": 100, "d": 99, "e": 0})
    assert found.of == {"a": "head", "b": "medium", "c": "medium", "d": "tail", "e": "tail"}
    assert found.rule == "head > 1000, tail < 100 train positives"


def test_a_small_set_is_cut_into_thirds() -> None:
    found = group({"a": 90, "b": 40, "c": 30, "d": 20, "e": 8, "f": 3})
    assert [found.members(name) for name in GROUPS] == [("a", "b"), ("c", "d"), ("e", "f")]
    assert "thirds" in found.rule


@given(COUNTS)
def test_groups_are_ordered_and_equal_counts_stay_together(counts: dict[str, int]) -> None:
    found = group(counts)
    assert set(found.of) == set(counts)
    assert sorted(f for name in GROUPS for f in found.members(name)) == sorted(counts)
    rank = {name: i for i, name in enumerate(("tail", "medium", "head"))}
    places = sorted((n, rank[found.of[f]]) for f, n in counts.items())
    assert [place for _, place in places] == sorted(place for _, place in places)
    assert len({(n, place) for n, place in places}) == len({n for n, _ in places})


def test_no_findings() -> None:
    assert group({}).of == {}
