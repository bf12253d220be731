"""Label errors by rank: the limit, the exact law of the number named, and planted errors."""

import numpy as np
import pandas as pd
import pytest

from medlt.checks.label_rank import LabelRank, RankLimit, rank_limits
from medlt.rng import numpy_generator


def table(values: list[float], prefix: str = "r") -> pd.DataFrame:
    return pd.DataFrame({"Mass": values}, [f"{prefix}{i}" for i in range(len(values))])


def test_the_limit_is_a_low_rank_of_the_real_positives() -> None:
    """Of 39 positives the 2nd lowest (0.05 x 40), of 5 the lowest; negatives and unknown rows do not count."""
    scores = table([i / 100 for i in range(41)])
    labels = table([1.0] * 39 + [0.0, np.nan])
    assert rank_limits(scores, labels)["Mass"] == RankLimit(0.01, 2, 39)
    assert rank_limits(scores.iloc[:5], labels.iloc[:5])["Mass"] == RankLimit(0.0, 1, 5)
    assert rank_limits(scores.iloc[39:], labels.iloc[39:]) == {}


def test_the_law_of_the_number_named_has_a_closed_form() -> None:
    """With rank 1 of n, P(one image below) = 1 / (n + 1), P(all m below) = m! n! / (m + n)!: all lowest."""
    limit = RankLimit(0.3, 1, 9)
    assert limit.p_value(1, 1) == pytest.approx(1 / 10)
    assert limit.p_value(3, 3) == pytest.approx(6 * 362880 / 479001600)
    assert limit.p_value(0, 3) == limit.p_value(0, 0) == 1


def test_right_labels_are_named_as_rarely_as_the_law_says() -> None:
    """Of 4,000 draws of real and synthetic positives from one distribution, 5 % at most have p below 0.05."""
    rng = numpy_generator("label rank")
    values = rng.random((4000, 50))
    limits = np.sort(values[:, :30], axis=1)[:, 0]
    named = (values[:, 30:] < limits[:, None]).sum(1)
    p = np.array([RankLimit(0, 1, 30).p_value(count, 20) for count in range(21)])
    small = (p[named] < 0.05).mean()
    assert small < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)


def test_planted_label_errors_are_named() -> None:
    rng = numpy_generator("planted")
    real = table(list(rng.uniform(0.4, 1, 60)))
    check = LabelRank(rank_limits(real, real * 0 + 1))
    scores = table([*rng.uniform(0.5, 1, 20), 0.01, 0.02, 0.03, 0.01], "s")
    labels = table([1.0] * 22 + [0.4, np.nan], "s")  # the last two are not labelled Mass
    done = check(scores, labels)
    assert len(done) == 22
    assert [(finding, result.uid) for finding, result in done if not result.passed] == [
        ("Mass", "s20"),
        ("Mass", "s21"),
    ]
    assert "labelled Mass, but the verifier gives it 0.010; 58 of 60 real positives" in done[20][1].reason
    assert check.limits["Mass"].p_value(2, 22) > 0.05 > check.limits["Mass"].p_value(8, 22)
