"""The choice of a strength: its bounds by hand, and distances of images that are known to be near or far."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlt.evaluation.calibration import MARGIN, PairedMeasures, RealDistances, allowed, chosen, summary, tabulate
from medlt.rng import numpy_generator


def row(**changed: float) -> dict[str, float]:
    return {"outside": 0.05, "verifier": 0.5, "verifier_change": 0.0} | changed


def test_real_validation_images_are_beyond_their_own_quantile_in_a_twentieth_of_cases() -> None:
    rng = numpy_generator("calibration test")
    train, val, fresh = (rng.normal(3.0, 2.0, (n, 6)) for n in (600, 600, 2000))
    real = RealDistances.of(train, val)
    assert float((real.distance(val) > 1).mean()) == pytest.approx(0.05, abs=0.005)
    assert float((real.distance(fresh) > 1).mean()) == pytest.approx(0.05, abs=0.025)
    assert float((real.distance(fresh + 20) > 1).mean()) == 1
    assert float((real.distance(train) > 1).mean()) < 0.05  # their nearest train image is themselves


def test_a_row_of_the_table_by_hand() -> None:
    nan = np.full(4, np.nan)
    plain = PairedMeasures(np.zeros(4), np.array([0.2, 0.4, 0.9, 1.2]), np.array([0.5, 0.5, 0.2, 0.8]), nan)
    guided = PairedMeasures(np.array([0.1, 0.2, 0.1, 0.2]), np.array([0.2, 1.1, 1.3, 1.2]), plain.verifier - 0.1, nan)
    found = summary(0.15, 0.5, guided, plain)
    assert found["displacement"] == pytest.approx(0.15)
    assert (found["outside"], found["rows"]) == (0.75, 4)
    assert found["verifier_change"] == pytest.approx(-0.1)
    assert found["verifier_se"] == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(found["signal"])
    assert list(tabulate([found | {"allowed": True}]).columns)[:3] == ["strength", "response", "displacement"]


@pytest.mark.parametrize(
    ("guided", "plain", "expected"),
    [
        (row(), row(), True),
        (row(outside=0.10), row(), True),
        (row(outside=0.11), row(), False),
        (row(outside=0.24), row(outside=0.2), True),  # unguided images exceed the bound: their share and a margin
        (row(outside=0.2 + MARGIN + 0.01), row(outside=0.2), False),
        (row(verifier_change=-0.049), row(), True),
        (row(verifier_change=-0.051), row(), False),
        (row(outside=float("nan"), verifier_change=float("nan")), row(outside=float("nan")), True),
    ],
)
def test_the_bounds(guided: dict[str, float], plain: dict[str, float], expected: bool) -> None:
    assert allowed(guided, plain, max_outside=0.1, max_label_loss=0.1) is expected


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.randoms())
def test_the_largest_strength_before_the_first_that_is_not_allowed(flags: list[bool], order: Any) -> None:
    strengths = [0.01 * 2**i for i in range(len(flags))]
    rows = [{"strength": 0.0, "allowed": True}]
    rows += [{"strength": s, "allowed": flag} for s, flag in zip(strengths, flags, strict=True)]
    order.shuffle(rows)
    first_bad = flags.index(False) if False in flags else len(flags)
    assert chosen(pd.DataFrame(rows)) == (strengths[first_bad - 1] if first_bad else 0.0)
