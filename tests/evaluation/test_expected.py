"""Expected verdicts: a truth table."""

from __future__ import annotations

import pytest

from medlt.evaluation.expected import expected, lines

ENTRIES = [{"arm": "paste", "verdict": "helps"}, {"arm": "coded", "verdict": "no evidence"}]


@pytest.mark.parametrize(
    ("expect", "met", "message"),
    [
        ({}, [], []),
        ({"paste": "helps"}, [True], []),
        ({"paste": "harms"}, [False], ["paste: helps, where harms was expected"]),
        ({"coded": "harms"}, [False], ["coded: no evidence, where harms was expected"]),
        ({"coded": "no evidence", "paste": "helps"}, [True, True], []),
        ({"fresh": "helps"}, [False], ["fresh: no verdict, where helps was expected"]),
    ],
)
def test_each_expected_verdict_is_compared_with_the_one_that_came_out(
    expect: dict[str, str], met: list[bool], message: list[str]
) -> None:
    rows = expected(ENTRIES, expect)
    assert [row["met"] for row in rows] == met
    assert lines(rows) == message
