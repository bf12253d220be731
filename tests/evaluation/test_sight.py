"""What an experiment can see: the AP of a random order, the margin above it, and the verdicts that follow."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medlt.evaluation.arms import REAL, ArmScores
from medlt.evaluation.length import TrainingLength
from medlt.evaluation.sight import Margin, Sight, margin, random_ap
from medlt.metrics.ranking import per_finding

RISING = ((10, 0.1), (20, 0.2))
BRIEF = TrainingLength(20, 20, "config", (RISING,))
BLIND = Margin(0.1, 0.09, 0.01, -0.01, 0.03)
SEES = Margin(0.3, 0.09, 0.21, 0.1, 0.3)


@pytest.mark.parametrize(("positives", "rows"), [(1, 1), (1, 4), (2, 5), (3, 6), (5, 5)])
def test_the_ap_of_a_random_order_is_the_mean_over_all_orders(positives: int, rows: int) -> None:
    truth = np.array([1] * positives + [0] * (rows - positives), float)[:, None]
    every = [
        per_finding(truth, np.array(order, float)[:, None], ["a"])["AP"].item() for order in permutations(range(rows))
    ]
    assert random_ap(positives, rows) == pytest.approx(np.mean(every))


def scores(strength: float, n: int = 400, seeds: int = 2) -> ArmScores:
    draw = np.random.default_rng(0)
    truth = (draw.random((n, 2)) < [0.5, 0.1]).astype(float)
    given = np.stack([strength * truth + draw.normal(size=truth.shape) for _ in range(seeds)])
    return ArmScores({REAL: 1 / (1 + np.exp(-given))}, truth, [str(i // 2) for i in range(n)], ("a", "b"))


def test_a_classifier_that_sees_is_above_random_and_one_that_guesses_is_not() -> None:
    sees = margin(scores(4.0), ("b",), n_bootstrap=200, seed=0)
    assert sees.problem == ""
    assert sees.low > 0.3
    guesses = margin(scores(0.0), ("b",), n_bootstrap=200, seed=0)
    assert guesses.low < 0 < guesses.high
    assert "not clearly above that of a random order" in guesses.problem
    assert "raise classifier.size" in guesses.problem


def test_the_margin_is_ap_less_that_of_a_random_order() -> None:
    given = scores(1.0)
    found = margin(given, ("b",), n_bootstrap=100, seed=0)
    tables = [per_finding(given.truth, one, given.findings) for one in given.scores[REAL]]
    assert found.value == pytest.approx(np.mean([table.loc["b", "AP"] for table in tables]))
    assert found.random == pytest.approx(random_ap(int(given.truth[:, 1].sum()), 400))
    assert found.difference == pytest.approx(found.value - found.random)


def test_without_a_tail_positive_nothing_is_known() -> None:
    given = scores(1.0)
    given.truth[:, 1] = 0
    assert np.isnan(margin(given, ("b",), n_bootstrap=100, seed=0).difference)
    assert Margin().problem == ""


@pytest.mark.parametrize(
    ("sight", "problems"),
    [
        (Sight(), 0),
        (Sight(SEES), 0),
        (Sight(BLIND), 1),
        (Sight(SEES, BRIEF), 1),
        (Sight(BLIND, BRIEF), 2),
        (Sight(SEES, TrainingLength(10, 20, "plateau", (((10, 0.2), (20, 0.1)),))), 0),
    ],
)
def test_any_problem_replaces_every_verdict(sight: Sight, problems: int) -> None:
    table = pd.DataFrame({"verdict": ["helps", "no evidence", "harms"], "low": [0.1, -0.1, -0.2]})
    read: Any = sight.read(table)
    assert len(sight.problems) == len(sight.record()["cannot_see"]) == problems
    assert list(read["verdict"]) == (["cannot see"] * 3 if problems else ["helps", "no evidence", "harms"])
    assert list(read["low"]) == list(table["low"])  # intervals stay
